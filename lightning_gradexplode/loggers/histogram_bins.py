"""Histograms reduced to what charts show: about 40 bins with finite borders; the first and the last are not empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.records import BUCKET_EDGES, FloatArray, Histogram, IntArray

LARGEST = float(np.finfo(np.float32).max)
"""The outer border of the outermost bucket in place of infinity."""


PARTS = 24
"""Number of equal parts of a histogram's range whose buckets are not merged; TensorBoard draws 30 over all steps."""

SHARES = 8
"""Number of equal shares of a histogram's values whose buckets are not merged; TensorBoard shows eight quantiles."""


@dataclass(frozen=True, slots=True, eq=False)
class Condensed:
    """A histogram with few bins, for charts.

    Args:
        counts: Number of values in each bin, shape ``(n,)``.
        edges: Borders of the bins, finite and ascending, shape ``(n + 1,)``.
        num: Number of values.
        sum: Sum of the values, each taken as the middle of its bucket in the original histogram.
        sum_squares: Sum of their squares.
    """

    counts: IntArray
    edges: FloatArray
    num: int
    sum: float
    sum_squares: float


def condensed(histograms: Mapping[str, Histogram]) -> dict[str, Condensed]:
    """Return histograms reduced to what a chart with a linear axis, or of quantiles, can show.

    Neighboring buckets are merged if they lie in the same one of `PARTS` equal parts of the range and in the same one
    of `SHARES` equal shares of the values. About 40 bins remain of a typical gradient. All histograms are reduced in
    one pass.

    Args:
        histograms: Histograms by name. Those without a finite value are left out, since they have no range.
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
