"""The weights' change by a step, estimated from a fixed sample of them: for models whose second copy does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.process_group import ShardLayout
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norms import Norms, PendingNorms, measure_norms
from lightning_gradexplode.measure.weights import WeightChange

LEAST = 64
"""So many elements of each tensor are in the sample, or all that it has."""


class WeightSample:
    """A few of the weights, taken before an optimizer step and compared with the same ones after it.

    Of each tensor the sample holds a share of its elements, at places that are drawn anew, and the same, at each step.
    The norm of a tensor's change is estimated as that of the sample's times the square root of elements per sampled
    element. Of normally distributed changes a sample of n elements gives the norm to about 1 / sqrt(2 n): of 10,000 to
    0.7 %. The norms of the weights themselves are exact.

    Args:
        parameters: The weights.
        size: Number of elements in the sample, shared out over the tensors by their sizes; each gets `LEAST` at least.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int) -> None:
        flats = [flat_elements(parameter) for parameter in parameters]
        self._places = _places([flat.numel() for flat in flats], size)
        self._values = self._taken(flats)
        self._before = PendingNorms(flats, ())

    def change(self, parameters: Sequence[Tensor], shards: ShardLayout) -> WeightChange:
        """Compare with the weights after the step.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.

        Returns:
            The change, with no differences of single elements in it.
        """
        flats = [flat_elements(parameter) for parameter in parameters]
        sampled = measure_norms([new - old for new, old in zip(self._taken(flats), self._values, strict=True)])
        sizes = np.array([flat.numel() for flat in flats], dtype=np.float64)
        counts = np.array([len(places) for places in self._places], dtype=np.float64)
        change = Norms(sampled.each * np.sqrt(sizes / np.maximum(counts, 1)), sampled.nonfinite)
        before = self._before.norms(intact=False)  # the weights themselves have been changed since
        after, before, change = shards.several_norms([measure_norms(flats), before, change])
        return WeightChange(after, before, change, ())

    def _taken(self, flats: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [flat[places.to(flat.device)] for flat, places in zip(flats, self._places, strict=True)]


def _places(sizes: Sequence[int], size: int) -> list[Tensor]:
    """Draw places in tensors of these sizes, the same ones at each call."""
    random = np.random.default_rng(0)
    total = max(sum(sizes), 1)
    counts = [min(one, max(LEAST, round(size * one / total))) for one in sizes]
    drawn = [
        np.arange(one) if count == one else np.sort(random.integers(0, one, count))
        for one, count in zip(sizes, counts, strict=True)
    ]
    return [torch.from_numpy(places) for places in drawn]
