"""What is kept of the beginning of a step, so that it can be computed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_gradexplode.diagnose.replay import AttributeState, KeptBatch, RandomState


class StepInputs(NamedTuple):
    """What a step needs to be computed again.

    Args:
        batch: Its last micro-batch.
        batch_idx: Index of that in the epoch.
        is_last: Whether that is the last batch of the epoch.
        random_state: The state of the random number generators before it.
        attributes: Numbers and generators of the module before it.
        weights: Copies of the weights before it, None where none were kept.
    """

    batch: KeptBatch
    batch_idx: int
    is_last: bool
    random_state: RandomState | None = None
    attributes: AttributeState | None = None
    weights: Mapping[str, Tensor] | None = None
