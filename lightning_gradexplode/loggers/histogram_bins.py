"""Histograms reduced to what charts show: no empty buckets outside, finite borders, and not too many."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Return a histogram reduced to a number of buckets.

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


PARTS = 24
"""Number of equal parts of a histogram's range that have their own buckets; TensorBoard draws 30 over all steps."""

SHARES = 8
"""Number of equal shares of a histogram's values with buckets of their own; TensorBoard shows eight."""


@dataclass(frozen=True, slots=True, eq=False)
class Condensed(Buckets):
    """Buckets with what is in them: the number of values, their sum and the sum of their squares.

    Each value is taken for the middle of the finest bucket that it was in.
    """

    num: int
    sum: float
    sum_squares: float


def condensed(histograms: Mapping[str, Histogram]) -> dict[str, Condensed]:
    """Return histograms reduced, all at once, to what a chart with a linear axis and one of quantiles can show.

    Neighbouring buckets are merged where both lie within one of `PARTS` equal parts of the range, and within one of
    `SHARES` equal shares of the values. So a bucket is one of the finest, or narrow and with few values in it. Some 40
    remain of what gradients usually fill.

    Args:
        histograms: By name; those of no finite value are left out, for nothing can be shown of them.
    """
    names = list(histograms)
    counts_by_name = np.stack([histograms[name].counts for name in names]) if names else np.zeros((0, 1), np.int64)
    width = counts_by_name.shape[1]
    filled = np.flatnonzero(counts_by_name)
    if not len(filled):
        return {}
    # Empty buckets between two filled ones of the same histogram are one entry together.
    gaps = filled[:-1][(np.diff(filled) > 1) & (np.diff(filled // width) == 0)] + 1
    entries = np.sort(np.concatenate([filled, gaps]), kind="stable")
    rows, columns = np.divmod(entries, width)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    sizes = np.diff(firsts, append=len(entries))
    lasts = firsts + sizes - 1

    counts = counts_by_name.reshape(-1)[entries]
    edges = np.clip(BUCKET_EDGES, -LARGEST, LARGEST)
    lefts = edges[columns]
    rights = np.append(lefts[1:], 0.0)
    rights[lasts] = edges[columns[lasts] + 1]
    low, high = lefts[firsts], rights[lasts]
    totals = np.add.reduceat(counts, firsts)
    after = np.cumsum(counts)
    after -= np.repeat(after[lasts] - totals, sizes)

    part, last_part = _places(lefts - np.repeat(low, sizes), rights - np.repeat(low, sizes), high - low, sizes, PARTS)
    share, last_share = _places(after - counts, after, totals, sizes, SHARES)
    begins = np.append(True, (part[:-1] != last_part[1:]) | (share[:-1] != last_share[1:]))
    begins[firsts] = True
    starts = np.flatnonzero(begins)

    middles = (lefts + rights) / 2
    merged, kept = np.add.reduceat(counts, starts), lefts[starts]
    borders = np.searchsorted(starts, np.append(firsts, len(entries))).tolist()
    sums, squares = (np.add.reduceat(counts * power, firsts).tolist() for power in (middles, np.square(middles)))
    return {
        names[row]: Condensed(
            merged[borders[place] : borders[place + 1]],
            np.append(kept[borders[place] : borders[place + 1]], high[place]),
            num,
            sums[place],
            squares[place],
        )
        for place, (row, num) in enumerate(zip(rows[firsts].tolist(), totals.tolist(), strict=True))
    }


def log_condensed(histogram: Histogram) -> Condensed | None:
    """Return the histogram of the decimal logarithms of the absolute values, in bins of an octave.

    Returns:
        None if no element is finite and other than zero.
    """
    counts, edges = histogram.magnitudes()
    if not len(counts):
        return None
    starts = np.arange(0, len(counts), 4)
    middles = (edges[:-1] + edges[1:]) / 2
    return Condensed(
        counts=np.add.reduceat(counts, starts),
        edges=np.append(edges[starts], edges[-1]),
        num=int(counts.sum()),
        sum=float((counts * middles).sum()),
        sum_squares=float((counts * np.square(middles)).sum()),
    )


def _places(
    begins: FloatArray | IntArray,
    ends: FloatArray | IntArray,
    wholes: FloatArray | IntArray,
    sizes: IntArray,
    number: int,
) -> tuple[FloatArray, FloatArray]:
    """Return in which of a number of equal parts of its whole each stretch begins and ends.

    Args:
        begins: Where each stretch begins, from 0 on.
        ends: Where it ends.
        wholes: What is divided, for each group of stretches.
        sizes: Number of stretches of each group.
        number: Number of parts.
    """
    scale = np.repeat(number / wholes, sizes)
    first = np.floor(begins * scale)
    return first, np.maximum(np.ceil(ends * scale) - 1, first)
