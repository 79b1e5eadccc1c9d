"""The gradient histograms that a report compares: the last ones of a calm step, and the latest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightning_gradexplode.records import BUCKET_EDGES, Histogram, IntArray, StepRecord

Sparse = tuple[IntArray, IntArray, int]
"""Indices and counts of the filled buckets, and the number of elements that are not finite."""


class GradientHistory:
    """Keeps the gradient histograms of two steps of each optimizer, without their empty buckets."""

    def __init__(self) -> None:
        self._calm: dict[int, tuple[int, Mapping[str, Sparse]]] = {}
        self._latest: dict[int, tuple[int, Mapping[str, Sparse]]] = {}

    def add(self, record: StepRecord) -> None:
        """Keep the histograms of a step, if it has any."""
        histograms = record.histograms.get("gradient")
        if histograms:
            kept = {name: _sparse(histogram) for name, histogram in histograms.items()}
            steps = self._latest if record.severity else self._calm
            steps[record.optimizer] = record.step, kept

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose histograms are kept."""
        each = (kept for steps in (self._calm, self._latest) for _, kept in steps.values())
        return list(dict.fromkeys(name for kept in each for name in kept))

    def of(self, parameter: str | None) -> tuple[tuple[int, Histogram], ...]:
        """Return steps and histograms of a parameter, the calm step first."""
        return tuple(
            (step, _dense(kept[parameter]))
            for steps in (self._calm, self._latest)
            for step, kept in steps.values()
            if parameter is not None and parameter in kept
        )


def _sparse(histogram: Histogram) -> Sparse:
    filled = np.flatnonzero(histogram.counts).astype(np.int64)
    return filled, histogram.counts[filled], histogram.nonfinite


def _dense(sparse: Sparse) -> Histogram:
    at, counts, nonfinite = sparse
    dense = np.zeros(len(BUCKET_EDGES) - 1, dtype=np.int64)
    dense[at] = counts
    return Histogram(dense, nonfinite)
