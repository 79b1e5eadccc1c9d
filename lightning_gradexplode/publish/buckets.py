"""A histogram's buckets made fit to be shown: without the empty ones outside, with finite borders, and not too many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.records import BUCKET_EDGES, FloatArray, Histogram, IntArray

LARGEST = float(np.finfo(np.float32).max)
"""Stands for infinity at the outer border of the outermost bucket."""


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """Buckets with finite ascending borders.

    Args:
        counts: Number of values, shape ``(n,)``.
        edges: Borders, shape ``(n + 1,)``.
    """

    counts: IntArray
    edges: FloatArray


def buckets(histogram: Histogram, at_most: int = 512) -> Buckets:
    """Reduce a histogram to the buckets that people look at.

    Empty buckets outside are dropped, runs of empty ones inside become one, and where there are still more than
    allowed, neighbours are merged.

    Args:
        histogram: One with at least one finite value.
        at_most: Number of buckets allowed.

    Raises:
        ValueError: The histogram holds no finite value.
    """
    filled = np.flatnonzero(histogram.counts)
    if not len(filled):
        raise ValueError("a histogram without finite values has no buckets to show")
    first, last = int(filled[0]), int(filled[-1])
    counts = histogram.counts[first : last + 1]
    edges = np.clip(BUCKET_EDGES[first : last + 2], -LARGEST, LARGEST)
    # The left border of a bucket stays if the bucket or its left neighbour holds something.
    stays = (counts > 0) | np.concatenate([[True], counts[:-1] > 0])
    starts = np.flatnonzero(stays)
    while len(starts) > at_most:
        starts = starts[::2]
    return Buckets(np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1]))
