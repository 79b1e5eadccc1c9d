"""Norms, maxima and counts against plain Python in float64."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode.measure.maxima import count_at_least, measure_maxima
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.records import Norms
from tests.measure.tensors import WILD, float_tensors, held, real_parts, stored_bytes, true_norm

wild = pytest.mark.parametrize("build", WILD.values(), ids=WILD)


def close(value: float) -> object:
    """Accept what is right to 1e-6, or to the last digit of a subnormal float64."""
    return pytest.approx(value, rel=1e-6, abs=1e-322, nan_ok=True)


@wild
def test_norm_of_a_wild_tensor(build: Callable[[], Tensor]) -> None:
    """The norm of any kind of tensor is right to 1e-6, and its non-finite elements are counted."""
    tensor = build()
    norms = measure_norms([tensor])
    assert norms.each.tolist() == [close(true_norm(real_parts(tensor)))]
    assert norms.nonfinite.tolist() == [sum(not cmath.isfinite(value) for value in held(tensor))]


@wild
def test_maximum_of_a_wild_tensor(build: Callable[[], Tensor]) -> None:
    """The maximum is that of the absolute values, exactly; NaN wins over all."""
    tensor = build()
    moduli = [true_norm([value.real, value.imag]) if tensor.is_complex() else abs(value) for value in held(tensor)]
    expected = math.nan if any(map(math.isnan, moduli)) else max(moduli, default=0.0)
    assert measure_maxima([tensor]).tolist() == [pytest.approx(expected, rel=1e-7, abs=0.0, nan_ok=True)]


@wild
@pytest.mark.parametrize("border", [1e-3, 1.0, 2.5, 65536.0])
def test_count_in_a_wild_tensor(build: Callable[[], Tensor], border: float) -> None:
    """Elements whose absolute value reaches a border are counted exactly, NaN and infinity with them."""
    tensor = build()
    assert count_at_least([tensor], border).item() == sum(not abs(value) < border for value in held(tensor))


@wild
def test_measuring_changes_nothing(build: Callable[[], Tensor]) -> None:
    """A tensor that was measured holds the same bits as before, and was never written to."""
    tensor = build()
    before, version = stored_bytes(tensor), tensor._version
    measure_norms([tensor])
    measure_maxima([tensor], 3.0)
    count_at_least([tensor], 1.0)
    assert (stored_bytes(tensor), tensor._version) == (before, version)


def test_all_wild_tensors_in_one_call() -> None:
    """Many tensors of all kinds, with gaps between them, are measured as each is by itself, in their order."""
    tensors: list[Tensor | None] = [None]
    for build in WILD.values():
        tensors += [build(), None]
    each = [true_norm(real_parts(tensor)) if tensor is not None else 0.0 for tensor in tensors]
    norms = measure_norms(tensors)
    assert norms.each.tolist() == [close(norm) for norm in each]
    assert math.isnan(norms.total)
    maxima = [measure_maxima([tensor]).item() for tensor in tensors]
    assert measure_maxima(tensors).tolist() == [pytest.approx(maximum, abs=0.0, nan_ok=True) for maximum in maxima]


@given(float_tensors())
def test_norm_of_any_tensor(tensor: Tensor) -> None:
    """Whatever the values, the type and the layout: norm, maximum and counts are those of plain Python."""
    values = real_parts(tensor)
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    norms = measure_norms([tensor])
    assert norms.total == pytest.approx(true_norm(values), rel=1e-5 if half else 1e-6, abs=1e-322, nan_ok=True)
    assert norms.nonfinite_total == sum(not math.isfinite(value) for value in values)
    largest = math.nan if any(map(math.isnan, values)) else max(map(abs, values), default=0.0)
    assert measure_maxima([tensor]).item() == pytest.approx(largest, rel=0.0, abs=0.0, nan_ok=True)
    assert count_at_least([tensor], 1.0).item() == sum(not abs(value) < 1.0 for value in values)


@given(st.lists(float_tensors(), max_size=6))
def test_total_norm_of_any_tensors(tensors: list[Tensor]) -> None:
    """The total of several tensors is the norm of all their elements together."""
    values = [value for tensor in tensors for value in real_parts(tensor)]
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    expected = true_norm(values) if finite == values else None
    total = measure_norms(tensors).total
    if expected is not None:
        assert total == close(expected)
    else:
        assert not math.isfinite(total)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("size", [16_384, 16_385, 1_000_003])
def test_norm_of_a_large_tensor(size: int, scale: float) -> None:
    """A million elements lose no digits: float32 sums alone would be off by 1e-5 and more."""
    tensor = (torch.rand(size) + 0.5) * scale
    wide = tensor.double().numpy() / scale
    expected = scale * math.sqrt(math.fsum(np.square(wide)))
    assert measure_norms([tensor]).total == close(expected)


@pytest.mark.parametrize("value", [0.1, 0.7, 1.7])
@pytest.mark.parametrize("size", [1024, 16_384, 16_385, 1_000_003])
def test_norm_of_one_value_repeated(size: int, value: float) -> None:
    """Equal elements, whose rounding errors add up instead of cancelling, lose no digits either."""
    tensor = torch.full((size,), value)
    assert measure_norms([tensor]).total == close(math.sqrt(size) * float(tensor[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_norm_of_a_large_tensor_of_another_type(dtype: torch.dtype) -> None:
    """The type of a large tensor does not cost digits either, though half precision holds only three."""
    tensor = torch.randn(300_001).to(dtype)
    expected = math.sqrt(math.fsum(np.square(tensor.double().numpy())))
    assert measure_norms([tensor]).total == pytest.approx(expected, rel=1e-5 if dtype.itemsize == 2 else 1e-9)


def test_one_bad_element_among_a_million() -> None:
    """A single NaN in a large tensor is counted, wherever it lies."""
    tensor = torch.randn(1_000_003)
    for place in (0, 262_144, 1_000_002):
        bad = tensor.clone()
        bad[place] = math.nan
        norms = measure_norms([bad])
        assert math.isnan(norms.total)
        assert norms.nonfinite_total == 1
        assert math.isnan(measure_maxima([bad]).item())


def test_a_gradient_scaler_is_divided_out() -> None:
    """Scaled gradients give the norms and maxima of the unscaled ones, also where only the scale overflows."""
    tensor = torch.tensor([3e38, 4e37])
    assert measure_norms([tensor]).divided_by(65536.0).total == close(math.hypot(3e38, 4e37) / 65536.0)
    assert measure_maxima([tensor], 65536.0).item() == pytest.approx(3e38 / 65536.0, rel=1e-7)


def test_no_tensors_at_all() -> None:
    """Nothing to measure gives zeros, not an error."""
    for tensors in ([], [None, None]):
        assert measure_norms(tensors).total == 0.0
        assert measure_norms(tensors).nonfinite_total == 0
        assert measure_maxima(tensors).tolist() == [0.0] * len(tensors)


def test_results_carry_no_autograd_graph() -> None:
    """Tensors that require gradients are taken, also ones computed from others, and nothing is recorded for them."""
    weight = torch.nn.Parameter(torch.randn(4, 4))
    product = weight @ weight
    values = real_parts(product)
    assert measure_norms([weight, product]).each[1] == close(true_norm(values))
    assert measure_maxima([product]).item() == pytest.approx(max(map(abs, values)), abs=0.0)
    assert weight.grad is None


@given(st.lists(st.floats(0.0, 6e307), max_size=8))
def test_combining_norms_neither_overflows_nor_underflows(norms: list[float]) -> None:
    """Norms of parts combine to the norm of the whole, from the smallest to the largest float64."""
    assert Norms(np.array(norms), np.zeros(len(norms))).total == close(true_norm(norms))
