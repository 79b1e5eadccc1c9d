"""Histograms made fit to be shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.publish.buckets import LARGEST, buckets
from tests.publish.steps import HOPELESS, TENSORS

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
