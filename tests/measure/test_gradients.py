"""The reading of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.measure.parameters import ParameterSet, parameters_of


def parameters_with(*gradients: Tensor | None) -> ParameterSet:
    """Build parameters of ones with these gradients."""
    module = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in gradients])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient
    return parameters_of(SGD(module.parameters(), lr=0.1), module)


def test_norms_are_of_the_gradients_without_the_scale() -> None:
    """Norms of each and of all, with the scale divided out; a missing gradient counts as zero."""
    reading = GradientReading.take(
        parameters_with(torch.tensor([3.0, -4.0, 0.0]), None, torch.tensor([0.5, 1.5, -2.0])), 2.0
    )
    assert reading.any
    assert reading.norms().total == pytest.approx(math.sqrt(25 + 6.5) / 2, rel=1e-6)
    assert reading.norms().each == pytest.approx([2.5, 0.0, math.sqrt(6.5) / 2], rel=1e-6)


def test_nonfinite_elements_are_counted() -> None:
    """NaN and infinite elements are counted by parameter, and make the norm NaN."""
    reading = GradientReading.take(parameters_with(torch.tensor([1.0, math.nan, -math.inf]), torch.ones(3)))
    assert reading.norms().nonfinite.tolist() == [2, 0]
    assert math.isnan(reading.norms().total)


def test_a_reading_without_gradients_is_marked() -> None:
    """Where no parameter has a gradient there is nothing to measure."""
    assert not GradientReading.take(parameters_with(None, None)).any


def test_a_reading_detects_whether_the_gradients_are_still_the_same() -> None:
    """A write, a replacement and a removal are noticed."""
    changes: list[Callable[[Any], Any]] = [
        lambda parameter: parameter.grad.mul_(0.5),
        lambda parameter: setattr(parameter, "grad", parameter.grad.clone()),
        lambda parameter: setattr(parameter, "grad", None),
    ]
    for change in changes:
        parameters = parameters_with(torch.ones(3), None)
        reading = GradientReading.take(parameters, 1.0)
        assert reading.holds(parameters)
        change(parameters.tensors[0])
        assert not reading.holds(parameters)


def test_unscaling_is_no_write() -> None:
    """A reading taken of scaled gradients, with the scale divided out, is that of the gradients once unscaled."""
    parameters = parameters_with(torch.full((3,), 0.5))
    optimizer = SGD(parameters.tensors, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(parameters.tensors[0].sum()).backward()  # type: ignore[no-untyped-call]
    reading = GradientReading.take(parameters, scaler.get_scale())
    scaler.unscale_(optimizer)
    assert reading.holds(parameters)
    assert reading.norms().total == pytest.approx(GradientReading.take(parameters).norms().total, rel=1e-6)
