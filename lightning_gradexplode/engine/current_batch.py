"""The current batch of a run."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradexplode.engine.step_inputs import StepInputs


@dataclass(slots=True)
class CurrentBatch:
    """What is known of the current batch; only `Batches` writes to it.

    Attributes:
        is_open: Whether it has begun and not ended.
        index: Its index in the epoch.
        number: The step that other metrics of it are logged at.
        has_loss: Whether a loss of it was computed.
        measures_modules: Whether error gradients of modules are measured in it.
        last_backward: Index and inputs of the batch of the last backward pass, None if that batch has ended.
    """

    is_open: bool = False
    index: int = 0
    number: int = 0
    has_loss: bool = False
    measures_modules: bool = False
    last_backward: tuple[int, StepInputs | None] | None = None
