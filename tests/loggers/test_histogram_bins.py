"""Histograms made fit to be shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode.loggers.histogram_bins import LARGEST, PARTS, SHARES, Buckets, buckets, condensed
from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import Histogram
from tests.loggers.steps import HOPELESS, TENSORS

float32_lists = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


def assert_fit(values: Tensor, at_most: int) -> None:
    """Check buckets against the values they were made of."""
    shown = buckets(measure_histogram(values), at_most)
    finite = values[torch.isfinite(values)].double().clamp(-LARGEST, LARGEST)
    assert len(shown.edges) == len(shown.counts) + 1
    assert len(shown.counts) <= at_most
    assert np.isfinite(shown.edges).all()
    assert (np.diff(shown.edges) > 0).all()
    assert shown.counts.sum() == finite.numel()
    assert shown.edges[0] <= float(finite.min())
    assert shown.edges[-1] >= float(finite.max())
    assert shown.counts[0] > 0
    assert shown.counts[-1] > 0


@pytest.mark.parametrize("at_most", [1, 2, 30, 512, 5000])
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_buckets_are_fit_to_be_shown(tensor: Tensor, at_most: int) -> None:
    """Borders are finite and ascend, no value is lost, none lies outside, and there are not too many."""
    assert_fit(tensor, at_most)


@given(float32_lists, st.integers(1, 40))
def test_buckets_of_any_values(values: list[float], at_most: int) -> None:
    """The same holds of any values and any number of buckets allowed."""
    assert_fit(torch.tensor(values), at_most)


@given(float32_lists)
def test_each_value_is_counted_where_it_lies(values: list[float]) -> None:
    """Where nothing has to be merged, each bucket's count is numpy's; on a border, away from zero."""
    tensor = torch.tensor(values)
    shown = buckets(measure_histogram(tensor), 5000)
    exact = tensor.double().numpy()
    inward = np.where(exact < 0, np.nextafter(exact, -np.inf), exact)  # numpy counts on a left border only
    expected, _ = np.histogram(inward, [*shown.edges[:-1], np.nextafter(shown.edges[-1], np.inf)])
    outside = len(values) - int(expected.sum())
    assert shown.counts[0] - expected[0] == outside  # a value on the leftmost border, moved over it
    np.testing.assert_array_equal(shown.counts[1:], expected[1:])


def test_a_gap_is_shown_as_a_gap() -> None:
    """Between values that lie far apart there is one empty bucket, and theirs do not stretch over it."""
    shown = buckets(measure_histogram(torch.tensor([-4.0, 1.0, 1.1, 1024.0])))
    assert shown.edges.tolist() == [-5.0, -4.0, 1.0, 1.25, 1024.0, 1280.0]
    assert shown.counts.tolist() == [1, 0, 2, 0, 1]


@pytest.mark.parametrize("tensor", HOPELESS.values(), ids=HOPELESS)
def test_nothing_finite_has_no_buckets(tensor: Tensor) -> None:
    """Without a finite value there is nothing to show, and that is said."""
    with pytest.raises(ValueError, match="finite"):
        buckets(measure_histogram(tensor))


def assert_condensed(shown: Buckets, fine: Buckets) -> None:
    """Check condensed buckets against the finest ones, by plain loops."""
    assert shown.edges[0] == fine.edges[0]
    assert shown.edges[-1] == fine.edges[-1]
    assert set(shown.edges) <= set(fine.edges)
    whole, total = fine.edges[-1] - fine.edges[0], int(fine.counts.sum())
    for left, right, count in zip(shown.edges[:-1], shown.edges[1:], shown.counts, strict=True):
        inside = (fine.edges[:-1] >= left) & (fine.edges[1:] <= right)
        assert count == fine.counts[inside].sum()
        if inside.sum() > 1:
            assert right - left <= whole / PARTS * (1 + 1e-9)
            assert count <= total / SHARES


@given(st.lists(float32_lists, min_size=1, max_size=6))
def test_condensed_buckets_are_the_finest_or_narrow_and_sparse(lists: list[list[float]]) -> None:
    """Each histogram of several is reduced by itself; what is merged is narrow and holds few values."""
    histograms = {f"{place}": measure_histogram(torch.tensor(values)) for place, values in enumerate(lists)}
    shown = condensed(histograms)
    assert list(shown) == list(histograms)
    for name, one in shown.items():
        assert_condensed(one, buckets(histograms[name], 5000))
        assert one.num == len(lists[int(name)])
        finest = buckets(histograms[name], 5000)
        middles = (finest.edges[:-1] + finest.edges[1:]) / 2
        assert one.sum == pytest.approx(float(finest.counts @ middles), rel=1e-9, abs=1e-9 * np.abs(middles).max())
        assert one.sum_squares == pytest.approx(float(finest.counts @ middles**2), rel=1e-9)


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_condensed_buckets_of_special_gradients(tensor: Tensor) -> None:
    """The same holds of gradients that are special."""
    histogram = measure_histogram(tensor)
    assert_condensed(condensed({"one": histogram})["one"], buckets(histogram, 5000))


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
