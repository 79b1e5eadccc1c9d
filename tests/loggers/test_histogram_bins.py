"""Histograms made fit to be shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lightning_gradexplode.loggers.histogram_bins import LARGEST, PARTS, SHARES, Condensed, condensed
from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import BUCKET_EDGES, Histogram
from tests.loggers.steps import HOPELESS, TENSORS

float32_lists = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


def finest(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return borders and counts of all buckets from the first filled one to the last, with finite borders."""
    filled = np.flatnonzero(histogram.counts)
    first, last = filled[0], filled[-1]
    return np.clip(BUCKET_EDGES[first : last + 2], -LARGEST, LARGEST), histogram.counts[first : last + 1]


def assert_condensed(shown: Condensed, histogram: Histogram) -> None:
    """Check the bins of a chart against the buckets of the histogram, by plain loops."""
    edges, counts = finest(histogram)
    assert shown.edges[0] == edges[0]
    assert shown.edges[-1] == edges[-1]
    assert set(shown.edges) <= set(edges)
    assert (np.diff(shown.edges) > 0).all()
    for left, right, count in zip(shown.edges[:-1], shown.edges[1:], shown.counts, strict=True):
        inside = (edges[:-1] >= left) & (edges[1:] <= right)
        assert count == counts[inside].sum()
        if count and inside.sum() > 1:
            assert right - left <= (edges[-1] - edges[0]) / PARTS * (1 + 1e-9)
            assert count <= counts.sum() / SHARES


@given(st.lists(float32_lists, min_size=1, max_size=6))
def test_condensed_buckets_are_the_finest_or_narrow_and_sparse(lists: list[list[float]]) -> None:
    """Each histogram of several is reduced by itself; what is merged is narrow and holds few values."""
    histograms = {f"{place}": measure_histogram(torch.tensor(values)) for place, values in enumerate(lists)}
    shown = condensed(histograms)
    assert list(shown) == list(histograms)
    for name, one in shown.items():
        assert_condensed(one, histograms[name])
        assert one.num == len(lists[int(name)])
        edges, counts = finest(histograms[name])
        middles = (edges[:-1] + edges[1:]) / 2
        assert one.sum == pytest.approx(float(counts @ middles), rel=1e-9, abs=1e-9 * np.abs(middles).max())
        assert one.sum_squares == pytest.approx(float(counts @ middles**2), rel=1e-9)


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_condensed_buckets_of_special_gradients(tensor: Tensor) -> None:
    """The same holds of gradients that are special."""
    histogram = measure_histogram(tensor)
    assert_condensed(condensed({"one": histogram})["one"], histogram)


def test_a_gap_is_shown_as_a_gap() -> None:
    """Between values that lie far apart there is one empty bin, and theirs do not stretch over it."""
    shown = condensed({"one": measure_histogram(torch.tensor([-4.0, 1.0, 1.1, 1024.0]))})["one"]
    assert shown.edges.tolist() == [-5.0, -4.0, 1.0, 1.25, 1024.0, 1280.0]
    assert shown.counts.tolist() == [1, 0, 2, 0, 1]


def test_condensed_buckets_are_few_and_quantiles_are_right() -> None:
    """Of a million values of every size some 40 buckets remain, which give the quantiles to 2 % of the range."""
    values = torch.randn(1_000_000) * torch.rand(1_000_000) ** 2
    shown = condensed({"one": measure_histogram(values)})["one"]
    assert len(shown.counts) <= 50
    shares = np.array([0.0, 0.0668, 0.1587, 0.3085, 0.5, 0.6915, 0.8413, 0.9332, 1.0])
    read = np.interp(shares, np.append(0, np.cumsum(shown.counts)) / shown.num, shown.edges)
    true = np.quantile(values.double().numpy(), shares)
    np.testing.assert_allclose(read[1:-1], true[1:-1], atol=0.02 * (shown.edges[-1] - shown.edges[0]))


def test_what_has_no_finite_value_is_left_out() -> None:
    """Hopeless histograms are left out, wherever they stand among the others; of none at all there is nothing."""
    good = measure_histogram(torch.tensor([1.0]))
    mixed: dict[str, Histogram] = {"a": good, "b": good}
    for place, (name, tensor) in enumerate(HOPELESS.items()):
        items = list(mixed.items())
        items.insert(place * 2, (name, measure_histogram(tensor)))
        mixed = dict(items)
    shown = condensed(mixed)
    assert list(shown) == ["a", "b"]
    assert all(one.edges.tolist() == [1.0, 1.25] for one in shown.values())
    assert condensed({}) == condensed({name: measure_histogram(tensor) for name, tensor in HOPELESS.items()}) == {}
