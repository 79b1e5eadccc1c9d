"""Histograms: counts in buckets that are the same for all tensors, steps and processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records.arrays import FloatArray, IntArray


def _bucket_edges() -> FloatArray:
    """Return the borders of all buckets: all powers of two in the range of float32, and three points between each."""
    bits = np.arange(4, 1021, dtype=np.uint32) << 21
    positive = bits.view(np.float32).astype(np.float64)
    positive[-1] = np.inf
    return np.concatenate([-positive[::-1], positive])


BUCKET_EDGES: FloatArray = _bucket_edges()
"""The 2034 borders of the 2033 buckets that every histogram shares, ascending, from -inf to inf.

A bucket is a quarter of an octave: the borders are 2**e times 1, 1.25, 1.5 or 1.75. The middle bucket holds zero and
the subnormal numbers of float32, the outermost ones all finite numbers beyond the range of float32.
"""

_LOG_EDGES = np.log10(np.minimum(BUCKET_EDGES[len(BUCKET_EDGES) // 2 :], 2.0**128))


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values in buckets that are the same for all tensors, steps and processes, so that they can be added.

    Args:
        counts: Number of finite values per bucket, shape ``(2033,)``, between neighbours of `BUCKET_EDGES`.
            A value on a border belongs to the bucket farther from zero.
        nonfinite: Number of NaN and infinite values, which are in no bucket.
    """

    counts: IntArray
    nonfinite: int = 0

    def __post_init__(self) -> None:
        """Make the counts read-only, since records are passed to users' detectors and policies."""
        self.counts.flags.writeable = False

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.nonfinite + other.nonfinite)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Return the sum of any number of histograms."""
        counts, nonfinite = np.zeros(len(BUCKET_EDGES) - 1, dtype=np.int64), 0
        for histogram in histograms:
            counts += histogram.counts
            nonfinite += histogram.nonfinite
        return cls(counts, nonfinite)

    @classmethod
    def from_sparse(cls, indices: npt.ArrayLike, counts: npt.ArrayLike, nonfinite: int) -> Histogram:
        """Build a histogram from what `sparse` returned."""
        dense = np.zeros(len(BUCKET_EDGES) - 1, dtype=np.int64)
        dense[np.asarray(indices, dtype=np.int64)] = counts
        return cls(dense, nonfinite)

    def sparse(self) -> tuple[IntArray, IntArray, int]:
        """Return the indices and the counts of the buckets that are not empty, and the number of non-finite values."""
        filled = np.flatnonzero(self.counts).astype(np.int64)
        return filled, self.counts[filled], self.nonfinite

    @property
    def finite(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum())

    def magnitudes(self) -> tuple[IntArray, FloatArray]:
        """Return the distribution of the absolute values of the finite non-zero elements.

        Returns:
            Counts, shape ``(n,)``, and the decimal logarithms of the borders of their bins, shape ``(n + 1,)``. The
            first and the last bin are not empty. A bin is a quarter of an octave.
        """
        middle = len(self.counts) // 2
        counts = self.counts[middle + 1 :] + self.counts[:middle][::-1]
        filled = np.flatnonzero(counts)
        if not len(filled):
            return np.zeros(0, dtype=np.int64), np.zeros(1)
        first, last = int(filled[0]), int(filled[-1]) + 1
        return counts[first:last], _LOG_EDGES[first : last + 1]
