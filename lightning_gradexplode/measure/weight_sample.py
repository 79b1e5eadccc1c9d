"""The weights' change by a step, estimated from a fixed sample of them, for models whose second copy does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norms import measure_norms, start_norms
from lightning_gradexplode.measure.weights import WeightChange
from lightning_gradexplode.records import Norms

MIN_ELEMENTS_PER_TENSOR = 64
"""Number of elements of each tensor in the sample; all of a tensor that has fewer."""


class WeightSample:
    """A sample of the weights, copied before an optimizer step and compared with the same elements after it.

    The sample of a tensor is a share of its elements, drawn anew, and the same, at each step. The norm of a tensor's
    change is estimated as that of the sample times the square root of elements per sampled element. For normally
    distributed changes a sample of ``n`` elements has a relative standard error of about ``1 / sqrt(2 n)``: 0.7 % for
    10,000. The norms of the weights themselves are exact.

    Args:
        parameters: The weights.
        size: Number of elements in the sample, divided among the tensors in proportion to their sizes; each tensor has
            at least `MIN_ELEMENTS_PER_TENSOR`.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int) -> None:
        flats = [flat_elements(parameter) for parameter in parameters]
        self._indices = _drawn([flat.numel() for flat in flats], size)
        self._values = self._selected(flats)
        self._before = start_norms(flats)

    def change(self, parameters: Sequence[Tensor], shards: ShardLayout) -> WeightChange:
        """Compare with the weights after the step.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.

        Returns:
            The change, without differences of single elements.
        """
        flats = [flat_elements(parameter) for parameter in parameters]
        sampled = measure_norms([new - old for new, old in zip(self._selected(flats), self._values, strict=True)])
        sizes = np.array([flat.numel() for flat in flats], dtype=np.float64)
        counts = np.array([len(indices) for indices in self._indices], dtype=np.float64)
        change = Norms(sampled.each * np.sqrt(sizes / np.maximum(counts, 1)), sampled.nonfinite)
        before = self._before.norms(intact=False)  # the optimizer has written to the weights since
        after, before, change = shards.several_norms([measure_norms(flats), before, change])
        return WeightChange(after, before, change, ())

    def _selected(self, flats: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [flat[indices.to(flat.device)] for flat, indices in zip(flats, self._indices, strict=True)]


def _drawn(sizes: Sequence[int], size: int) -> list[Tensor]:
    """Draw indices into tensors of these sizes, the same ones at each call, without the run's random generators."""
    random = np.random.default_rng(0)
    total = max(sum(sizes), 1)
    counts = [min(one, max(MIN_ELEMENTS_PER_TENSOR, round(size * one / total))) for one in sizes]
    drawn = [
        np.arange(one) if count == one else np.sort(random.integers(0, one, count))
        for one, count in zip(sizes, counts, strict=True)
    ]
    return [torch.from_numpy(indices) for indices in drawn]
