"""Norms of a model's gradients against plain Python in float64, be they as expected or not."""

from __future__ import annotations

import cmath
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_gradexplode.measure.norms import BLOCK, SMALL, NormPlan, start_norms
from tests.measure.tensors import WILD, held, real_parts, true_norm

SHAPES = [(3,), (), (SMALL,), (64, 32), (5, 257), (2, 3, 640), (0,), (1280,)]

UNEXPECTED: dict[str, Callable[[], Tensor | None]] = {
    **WILD,
    "missing": lambda: None,
    "large": lambda: torch.randn(64, 32),
    "large and transposed": lambda: torch.randn(32, 64).t(),
    "large, in rows with gaps": lambda: torch.randn(64, 64)[:, ::2],
    "large and expanded": lambda: torch.ones(1, 1).expand(64, 32),
    "large bfloat16": lambda: torch.randn(64, 32).bfloat16(),
    "large float64": lambda: torch.randn(64, 32).double(),
    "large and sparse": lambda: torch.randn(64, 32).relu().to_sparse(),
    "large and huge": lambda: torch.full((64, 32), 1e30),
    "large and tiny": lambda: torch.full((64, 32), 1e-30),
    "large and wild": lambda: torch.full((64, 32), float("nan")),
}
"""Builders of gradients of which a float32 parameter of the same shape tells nothing but the shape."""


def truth(gradient: Tensor | None) -> object:
    """Give the norm by a plain loop in float64."""
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
    gradients = [torch.randn(3), odd, torch.randn(1280)]
    weights = [torch.zeros(3), torch.zeros(5) if odd is None else torch.zeros(odd.shape), torch.zeros(1280)]
    pending = start_norms(gradients, [torch.tensor(2.5)], NormPlan(weights))
    nonfinite = 0 if odd is None else sum(not cmath.isfinite(value) for value in held(odd))
    assert pending.norms().each.tolist() == [truth(gradient) for gradient in gradients]
    assert pending.norms().nonfinite.tolist() == [0, nonfinite, 0]
    assert pending.scalars.tolist() == [2.5]


@pytest.mark.parametrize("size", [4, 32, 2048, 4096])
def test_a_parameter_that_has_got_another_size(size: int) -> None:
    """A model that grows in place has its gradients measured as they are now."""
    weights, gradients = [torch.zeros(64), torch.zeros(size)], [torch.randn(64), torch.randn(2 * size)]
    norms = start_norms(gradients, [], NormPlan(weights)).norms()
    assert norms.each.tolist() == [truth(gradient) for gradient in gradients]
