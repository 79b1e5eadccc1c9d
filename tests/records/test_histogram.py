"""Histograms with the buckets that all tensors share."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.records import BUCKET_EDGES, Histogram
from tests.measure.tensors import true_counts


def histogram(values: list[float], nonfinite: int = 0) -> Histogram:
    """Build a histogram by numpy."""
    return Histogram(true_counts(values), nonfinite)


def test_bucket_edges_are_quarters_of_octaves() -> None:
    """The edges are each power of two of float32's normal numbers and three points up to the next, of both signs."""
    positive = [2.0**exponent * quarter for exponent in range(-126, 128) for quarter in (1.0, 1.25, 1.5, 1.75)]
    positive.append(math.inf)
    assert BUCKET_EDGES.tolist() == [-edge for edge in reversed(positive)] + positive
    assert len(BUCKET_EDGES) == 2034


def test_merged_histograms_count_all_values() -> None:
    """Adding and merging count all values; merging nothing gives the empty histogram."""
    one, other = histogram([1.0, -2.0], 1), histogram([1.0, 0.0, 1e-45], 2)
    for merged in (one + other, Histogram.merged([one, other])):
        np.testing.assert_array_equal(merged.counts, true_counts([1.0, -2.0, 1.0, 0.0, 1e-45]))
        assert (merged.finite, merged.nonfinite) == (5, 3)
    empty = Histogram.merged([])
    assert (empty.finite, empty.nonfinite, len(empty.counts)) == (0, 0, 2033)
    assert one.finite == 2
