"""Histograms against numpy, with the rule for values on a border written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode.measure import histograms, reading
from lightning_gradexplode.measure.histograms import measure_histogram, measure_histograms
from lightning_gradexplode.records import BUCKET_EDGES, Histogram
from tests.measure.tensors import WILD, float_tensors, real_parts, stored_bytes, true_counts

FINITE_EDGES = BUCKET_EDGES[1:-1]


def assert_facts_of(histogram: Histogram, values: list[float]) -> None:
    """Compare a histogram, bucket for bucket, with numpy's of the same values."""
    np.testing.assert_array_equal(histogram.counts, true_counts(values))
    assert histogram.nonfinite == sum(not math.isfinite(value) for value in values)


@pytest.mark.parametrize("build", WILD.values(), ids=WILD)
def test_histogram_of_a_wild_tensor(build: Callable[[], Tensor]) -> None:
    """Every kind of tensor is counted exactly, and left as it was."""
    tensor = build()
    before, version = stored_bytes(tensor), tensor._version
    assert_facts_of(measure_histogram(tensor), real_parts(tensor))
    assert (stored_bytes(tensor), tensor._version) == (before, version)


@given(float_tensors())
def test_histogram_of_any_tensor(tensor: Tensor) -> None:
    """Whatever the values, the type and the layout, each bucket's count is numpy's."""
    assert_facts_of(measure_histogram(tensor), real_parts(tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [-1.0, 0.0, 1.0])
def test_values_on_and_next_to_every_border(dtype: torch.dtype, side: float) -> None:
    """A value on a border goes to the bucket farther from zero; its neighbours on each side go where they belong."""
    borders = torch.tensor(FINITE_EDGES, dtype=dtype)
    values = torch.nextafter(borders, torch.full_like(borders, math.copysign(math.inf, side))) if side else borders
    assert_facts_of(measure_histogram(values), real_parts(values))


def test_every_number_of_half_precision() -> None:
    """All 65536 float16 and all 65536 bfloat16 numbers are counted into the right buckets."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        assert_facts_of(measure_histogram(values), real_parts(values))


def test_histogram_of_a_million_elements() -> None:
    """A large tensor, which is counted in chunks, loses no element."""
    tensor = torch.randn(1_000_003) * torch.logspace(-30, 30, 1_000_003)
    assert_facts_of(measure_histogram(tensor), tensor.double().tolist())


@pytest.fixture
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Require deterministic algorithms, or not."""
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True], indirect=True)
def test_an_accelerator_counts_the_same(monkeypatch: pytest.MonkeyPatch, deterministic: None) -> None:
    """Where tensors lie on an accelerator, other kernels count to the same numbers, with one read for all tensors."""
    tensors = [build() for build in WILD.values()] + [torch.randn(70_000)]
    expected = measure_histograms(tensors, 2.0)
    reads, cpu = [], Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        reads.append(tensor.shape)
        return cpu(tensor)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(histograms, "_DEVICE_PIECE", 30_000)
    monkeypatch.setattr(Tensor, "cpu", counted)
    for one, other in zip(measure_histograms(tensors, 2.0), expected, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        assert one.nonfinite == other.nonfinite
    assert len(reads) == 1


@given(float_tensors())
def test_an_accelerator_counts_any_tensor(tensor: Tensor) -> None:
    """Whatever the values, the type and the layout, each bucket's count is numpy's on an accelerator as well."""
    with mock.patch.object(reading, "is_on_host", return_value=False):
        assert_facts_of(measure_histogram(tensor), real_parts(tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_accelerator_counts_every_number_of_half_precision(dtype: torch.dtype) -> None:
    """All 65536 of them, on every border, are counted into the right buckets there."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    with mock.patch.object(reading, "is_on_host", return_value=False):
        assert_facts_of(measure_histogram(values), real_parts(values))


def test_a_million_equal_elements_are_counted_exactly_on_an_accelerator() -> None:
    """One bucket that holds all elements loses none to rounding."""
    with mock.patch.object(reading, "is_on_host", return_value=False):
        histogram = measure_histogram(torch.full((9_000_001,), 1e-3))
    assert histogram.counts.max() == 9_000_001


def test_histograms_of_several_tensors() -> None:
    """Large and small tensors of several types, measured together, keep their order and their own counts."""
    generator = torch.Generator().manual_seed(3)
    sizes = [5, 40_000, 0, 17, 300_000, 1, *[33] * 70]
    tensors = [torch.randn(size, generator=generator) * 10.0 ** (place % 7 - 3) for place, size in enumerate(sizes)]
    tensors += [tensors[3].double(), tensors[1].bfloat16()]
    for tensor, histogram in zip(tensors, measure_histograms(tensors), strict=True):
        assert_facts_of(histogram, tensor.double().tolist())


@given(float_tensors(), st.data())
def test_histograms_of_parts_add_up_to_the_whole(tensor: Tensor, data: st.DataObject) -> None:
    """The histograms of parts merge to the histogram of the whole."""
    flat = tensor.reshape(-1)
    cut = data.draw(st.integers(0, flat.numel()))
    merged = Histogram.merged([measure_histogram(flat[:cut]), measure_histogram(flat[cut:])])
    assert_facts_of(merged, real_parts(flat))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [65536.0, 3.0])
def test_a_gradient_scaler_is_divided_out(dtype: torch.dtype, scale: float) -> None:
    """The histogram of scaled gradients is that of the unscaled ones, none of which is rounded to zero."""
    tensor = torch.tensor([1.0, -1e-3, 100.0, 0.25, -0.0], dtype=dtype)
    unscaled = [value / scale for value in real_parts(tensor)]
    assert_facts_of(measure_histogram(tensor, scale), unscaled)


def test_integers_are_counted_too() -> None:
    """A tensor of integers is counted as the floats it stands for."""
    assert_facts_of(measure_histogram(torch.tensor([0, 1, -2, 300])), [0.0, 1.0, -2.0, 300.0])
