"""The weights' norm, and how much one optimizer step changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norm_plan import NormPlan
from lightning_gradexplode.measure.norms import PendingNorms
from lightning_gradexplode.records import FloatArray, Norms

CACHED = 1 << 20
"""Elements that are copied or compared at a time, and measured while they are in a processor's cache."""

_LINE = 64
"""Alignment of each copy, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightChange:
    """Weights after a step, and their change by it.

    Args:
        weights: Norms of the weights after the step.
        before: Norms of the weights before the step.
        change: Norms of the difference.
        differences: Weight after less weight before, the elements that this process holds; empty if not known.
    """

    weights: Norms
    before: Norms
    change: Norms
    differences: Sequence[Tensor]

    @property
    def update_ratio(self) -> float:
        """Norm of the change over norm of the weights before the step; 0/0 is 0, and x/0 is inf."""
        return float(_ratio(np.array([self.change.total]), np.array([self.before.total]))[0])

    @property
    def update_ratio_each(self) -> FloatArray:
        """The same per parameter, shape ``(parameters,)``."""
        return _ratio(self.change.each, self.before.each)


class WeightCopy:
    """A copy of the weights, made before an optimizer step and used up after it.

    Args:
        parameters: The weights. The copy holds as much memory as they do, until `change` is called.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        flats = [flat_elements(parameter) for parameter in parameters]
        self._plan = NormPlan(flats, CACHED)
        self._copies = _empty_like(flats)
        norms = []
        with torch.no_grad():
            for unit in self._plan.units:
                copies = unit.select(self._copies)
                torch._foreach_copy_(list(copies), list(unit.select(flats)))
                norms.append(unit.norms(copies))
        self._before = PendingNorms(self._copies, self._plan.places, self._plan.least, norms)

    def change(self, parameters: Sequence[Tensor], shards: ShardLayout) -> WeightChange:
        """Compare with the weights after the step; the copy's memory is reused for the differences.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.
        """
        before = self._before.norms()
        differences, self._copies = self._copies, []
        flats = [flat_elements(parameter) for parameter in parameters]
        of_weights, of_changes = [], []
        with torch.no_grad():
            for unit in self._plan.units:
                changes = [torch.sub(flats[place], differences[place], out=differences[place]) for place in unit.places]
                of_weights.append(unit.norms(unit.select(flats)))
                of_changes.append(unit.norms(changes))
        count, places, least = len(flats), self._plan.places, self._plan.least
        both = PendingNorms(
            [*flats, *differences],
            np.concatenate([places, count + places]),
            np.concatenate([least, least]),
            [*of_weights, *of_changes],
        ).norms()
        weights, change = (Norms(both.each[half], both.nonfinite[half]) for half in (np.s_[:count], np.s_[count:]))
        weights, before, change = shards.several_norms([weights, before, change])
        return WeightChange(weights, before, change, differences)


def _empty_like(flats: Sequence[Tensor]) -> list[Tensor]:
    """Allocate memory for copies of flat tensors.

    On the host as one numpy array, for which the system allocates large pages: a copy into fresh small ones takes
    five times as long (30 MB in 12 ms instead of 2).
    """
    if not all(map(reading.is_on_host, flats)):
        return [torch.empty_like(flat) for flat in flats]
    lengths = [-(-flat.nbytes // _LINE) * _LINE for flat in flats]
    memory = torch.from_numpy(np.empty(sum(lengths), dtype=np.uint8))
    parts = torch.split(memory, lengths)
    return [
        part[: flat.nbytes].view(flat.dtype) if len(flat) else torch.empty_like(flat)  # no memory has no stride to view
        for part, flat in zip(parts, flats, strict=True)
    ]


def _ratio(change: FloatArray, weights: FloatArray) -> FloatArray:
    """Divide elementwise, with 0/0 = 0: a frozen zero does not change."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(change == 0.0, np.where(np.isnan(weights), np.nan, 0.0), change / weights)
