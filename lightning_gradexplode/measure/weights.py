"""The weights' norm, and how much one optimizer step changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.process_group import ShardLayout
from lightning_gradexplode.measure.batched_norms import BatchedNorms
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norms import Norms
from lightning_gradexplode.measure.reading import is_on_host
from lightning_gradexplode.measure.small_tensors import CACHED, UsualTensors
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

    Some weights' norms are measured right when these are copied and compared, while they are in the processor's cache.

    Args:
        parameters: The weights. The copy holds as much memory as they do, until `change` is called.
        usual: Those that are measured together, in batches that fit into a cache; None to find out.
    """

    def __init__(self, parameters: Sequence[Tensor], usual: UsualTensors | None = None) -> None:
        flats = [flat_elements(parameter) for parameter in parameters]
        self._copies = copies = _empty_like(flats)

        def copied(places: Sequence[int]) -> tuple[list[Tensor]]:
            chosen = [copies[place] for place in places]
            torch._foreach_copy_(chosen, [flats[place] for place in places])
            return (chosen,)

        self._usual = UsualTensors(flats, CACHED) if usual is None else usual
        try:
            self._before = BatchedNorms(self._usual, copied)
        except (RuntimeError, TypeError):  # weights have got another type or size since
            self._usual = UsualTensors(flats, CACHED)
            self._before = BatchedNorms(self._usual, copied)

    def change(self, parameters: Sequence[Tensor], shards: ShardLayout) -> WeightChange:
        """Compare with the weights after the step; the copy's memory is reused for the differences.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.
        """
        (before,) = self._before.norms()  # of copies that are not overwritten yet
        differences, self._copies = self._copies, []
        flats = [flat_elements(parameter) for parameter in parameters]

        def compared(places: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
            weights = [flats[place] for place in places]
            copies = [differences[place] for place in places]
            return weights, [torch.sub(new, old, out=old) for new, old in zip(weights, copies, strict=True)]

        after, change = BatchedNorms(self._usual, compared, width=2).norms()
        after, before, change = shards.several_norms([after, before, change])
        return WeightChange(after, before, change, differences)


def _empty_like(flats: Sequence[Tensor]) -> list[Tensor]:
    """Reserve memory for a copy of flat tensors.

    On a processor as one numpy array, which asks the system for large pages: a copy into fresh small ones takes five
    times as long (30 MB in 12 ms, against 2).
    """
    if not all(map(is_on_host, flats)):
        return [torch.empty_like(flat) for flat in flats]
    copies = list(flats)
    for dtype in {flat.dtype for flat in flats}:
        sizes = {place: flat.numel() for place, flat in enumerate(flats) if flat.dtype is dtype}
        line = _LINE // dtype.itemsize
        padded = [-(-size // line) * line for size in sizes.values()]
        memory = torch.from_numpy(np.empty(sum(padded) * dtype.itemsize, dtype=np.uint8)).view(dtype)
        for (place, size), length, part in zip(sizes.items(), padded, torch.split(memory, padded), strict=True):
            copies[place] = part if size == length else part[:size]
    return copies


def _ratio(change: FloatArray, weights: FloatArray) -> FloatArray:
    """Divide elementwise, 0/0 being 0: a frozen zero does not change."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(change == 0.0, np.where(np.isnan(weights), np.nan, 0.0), change / weights)
