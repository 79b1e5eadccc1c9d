"""The weights' norm, and how much one optimizer step changed them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norms import Norms, PendingNorms, measure_norms
from lightning_gradexplode.measure.processes import Shards
from lightning_gradexplode.records import FloatArray

_LINE = 64
"""Bytes at a multiple of which each copy begins."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightChange:
    """Weights after a step, and their change by it.

    Args:
        weights: Norms of the weights after the step.
        before: Norms of the weights before the step.
        change: Norms of the difference.
        differences: The differences' elements that this process holds: weight after less weight before.
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
    """A copy of the weights, taken before an optimizer step and used up after it.

    Each weight's norms are measured right when it is copied and compared, while it is in the processor's cache.

    Args:
        parameters: The weights. The copy holds as much memory as they do, until `change` is called.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        with torch.no_grad():
            flats = [flat_elements(parameter) for parameter in parameters]
            self._copies = _empty_like(flats)
            self._before = PendingNorms((copy.copy_(flat) for copy, flat in zip(self._copies, flats, strict=True)), ())

    def change(self, parameters: Sequence[Tensor], shards: Shards) -> WeightChange:
        """Compare with the weights after the step; the copy's memory is reused for the differences.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.
        """
        before = self._before.norms()  # of copies that are not overwritten yet
        differences, self._copies = self._copies, []

        def weights_and_differences() -> Iterator[Tensor]:
            for difference, parameter in zip(differences, parameters, strict=True):
                weight = flat_elements(parameter)
                yield weight
                yield torch.sub(weight, difference, out=difference)

        norms = measure_norms(weights_and_differences())
        after, change = norms.part(slice(0, None, 2)), norms.part(slice(1, None, 2))
        return WeightChange(shards.norms(after), shards.norms(before), shards.norms(change), differences)


def _empty_like(flats: Sequence[Tensor]) -> list[Tensor]:
    """Reserve memory for a copy of flat tensors.

    On a processor as one numpy array, which asks the system for large pages: a copy into fresh small ones takes five
    times as long (30 MB in 12 ms, against 2).
    """
    if not all(flat.is_cpu for flat in flats):
        return [torch.empty_like(flat) for flat in flats]
    starts = [0, *itertools.accumulate(-(-flat.nbytes // _LINE) * _LINE for flat in flats)]
    memory = torch.from_numpy(np.empty(starts[-1], dtype=np.uint8))
    return [memory[start : start + f.nbytes].view(f.dtype) for start, f in zip(starts, flats, strict=False)]


def _ratio(change: FloatArray, weights: FloatArray) -> FloatArray:
    """Divide elementwise, 0/0 being 0: a frozen zero does not change."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(change == 0.0, np.where(np.isnan(weights), np.nan, 0.0), change / weights)
