"""Norms of a model's gradients against plain Python in float64, be they as expected or not."""

from __future__ import annotations

import cmath
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.norm_plan import BLOCK, SMALL, NormPlan
from lightning_gradexplode.measure.norms import start_norms
from tests.measure.tensors import WILD, held, real_parts, true_norm

SHAPES = [(3,), (), (SMALL,), (SMALL + 1,), (96, 64), (5, 1999), (2, 3, 640), (0,), (9216,)]

UNEXPECTED: dict[str, Callable[[], Tensor | None]] = {
    **WILD,
    "missing": lambda: None,
    "large": lambda: torch.randn(128, 64),
    "large and transposed": lambda: torch.randn(64, 128).t(),
    "large, in rows with gaps": lambda: torch.randn(128, 128)[:, ::2],
    "large and expanded": lambda: torch.ones(1, 1).expand(128, 64),
    "large bfloat16": lambda: torch.randn(128, 64).bfloat16(),
    "large float64": lambda: torch.randn(128, 64).double(),
    "large and sparse": lambda: torch.randn(128, 64).relu().to_sparse(),
    "large and huge": lambda: torch.full((128, 64), 1e30),
    "large and tiny": lambda: torch.full((128, 64), 1e-30),
    "large and wild": lambda: torch.full((128, 64), float("nan")),
}
"""Builders of gradients of which a float32 parameter of the same shape tells nothing but the shape."""


def truth(gradient: Tensor | None) -> object:
    """Compute the norm by a plain loop in float64."""
    norm = 0.0 if gradient is None else true_norm(real_parts(gradient))
    return pytest.approx(norm, rel=1e-6, abs=1e-322, nan_ok=True)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_each_norm_is_right(scale: float) -> None:
    """Small, large and odd tensors, scalars and empty ones get their own norm, in their own place."""
    gradients = [scale * torch.randn(shape) for shape in SHAPES]
    norms = start_norms(gradients, [], NormPlan(gradients)).norms()
    assert norms.each.tolist() == [truth(gradient) for gradient in gradients]
    assert norms.nonfinite_total == 0


def test_more_elements_than_are_copied_at_a_time() -> None:
    """Of hundreds of tensors, each keeps its own norm, in its own place."""
    gradients = [torch.full((place % 7 * 100 + 1,), float(place)) for place in range(BLOCK // 150)]
    norms = start_norms(gradients, [], NormPlan(gradients)).norms()
    assert norms.each.tolist() == [truth(gradient) for gradient in gradients]


@pytest.mark.parametrize("build", UNEXPECTED.values(), ids=UNEXPECTED)
def test_a_gradient_that_is_not_as_expected(build: Callable[[], Tensor | None]) -> None:
    """Whatever stands in one gradient's place, all norms are right, and what is not finite is counted."""
    odd = build()
    gradients = [torch.randn(3), odd, torch.randn(9216)]
    weights = [torch.zeros(3), torch.zeros(5) if odd is None else torch.zeros(odd.shape), torch.zeros(9216)]
    pending = start_norms(gradients, [torch.tensor(2.5)], NormPlan(weights))
    nonfinite = 0 if odd is None else sum(not cmath.isfinite(value) for value in held(odd))
    assert pending.norms().each.tolist() == [truth(gradient) for gradient in gradients]
    assert pending.norms().nonfinite.tolist() == [0, nonfinite, 0]
    assert pending.scalars == [2.5]


@pytest.mark.parametrize("size", [4, 32, 2048, 4096, 8192])
def test_a_parameter_that_has_got_another_size(size: int) -> None:
    """A model that grows in place has its gradients measured as they are now."""
    weights, gradients = [torch.zeros(64), torch.zeros(size)], [torch.randn(64), torch.randn(2 * size)]
    norms = start_norms(gradients, [], NormPlan(weights)).norms()
    assert norms.each.tolist() == [truth(gradient) for gradient in gradients]


@pytest.mark.parametrize("steps", [[0, 0, 0], [0, 1, 0], [1, 1, 0]])
def test_gradients_that_come_and_go(steps: list[int]) -> None:
    """With one plan, a gradient that is missing at some steps is zero there, and right where it is present."""
    weights = [torch.zeros(3), torch.zeros(80, 64), torch.zeros(5)]
    plan = NormPlan(weights)
    for step in steps:
        gradients = [torch.randn(3), torch.randn(80, 64) if step else None, torch.randn(5)]
        assert start_norms(gradients, [], plan).norms().each.tolist() == [truth(one) for one in gradients]


def test_tensors_of_several_types_in_one_list() -> None:
    """Half, single and double precision, integers and complex numbers are measured together, each to its digits."""
    large = torch.randn(96, 64)
    tensors = [large, large.double(), torch.arange(6000), torch.arange(5), large.to(torch.complex64), large[0].double()]
    expected = [truth(tensor) for tensor in tensors]
    plan = NormPlan(tensors)
    for _ in range(2):
        assert start_norms(tensors, [], plan).norms().each.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_is_read_once_from_an_accelerator(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """An all-zero gradient among others, large or small, needs no second transfer; neither does one of tiny values."""
    reads, cpu = [], Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        reads.append(tensor.shape)
        return cpu(tensor)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(Tensor, "cpu", counted)
    tiny = torch.full((3,), 1e-30).to(dtype)
    gradients = [torch.randn(5).to(dtype), torch.zeros(4, dtype=dtype), torch.zeros(80, 64, dtype=dtype), tiny, None]
    pending = start_norms(gradients, [torch.tensor(2.5)], NormPlan(gradients))
    assert not pending.is_there
    assert pending.norms().each.tolist() == [truth(gradient) for gradient in gradients]
    assert pending.scalars == [2.5]
    assert len(reads) == 1
