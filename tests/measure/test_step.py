"""A whole step's measurements as they come into its record."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_gradexplode.measure import step as measure
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import ParameterSet, parameters_of
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import StepRecord
from tests.measure.tensors import true_counts


def parameters_with(*gradients: Tensor | None, include: tuple[str, ...] = ("*",)) -> ParameterSet:
    """Build parameters of ones, called 0, 1, ..., with these gradients."""
    module = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=None if g is None else g.dtype)) for g in gradients])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient
    return parameters_of(SGD(module.parameters(), lr=0.1), module, include)


def record_of(parameters: ParameterSet) -> StepRecord:
    """Start a record of these parameters, with the norms of their gradients."""
    norms = measure.GradientReading.take(parameters, 1.0).norms
    return StepRecord(
        step=3, parameters=parameters.names, grad_norm=norms.total, per_parameter={"grad_norm": norms.each}
    )


def test_gradients_of_a_step() -> None:
    """Norms and maxima, of all and of each parameter, and the shares above one, with the scale divided out."""
    parameters = parameters_with(torch.tensor([3.0, -4.0, 0.0]), None, torch.tensor([0.5, 1.5, -2.0]))
    reading = measure.GradientReading.take(parameters, 2.0)
    assert reading.any
    assert reading.norms.total == pytest.approx(math.sqrt(25 + 6.5) / 2, rel=1e-6)
    assert reading.norms.each == pytest.approx([2.5, 0.0, math.sqrt(6.5) / 2], rel=1e-6)
    record = measure.with_details(record_of(parameters), parameters, 2.0)
    assert record.grad_max == 2.0
    assert record.per_parameter["grad_max"].tolist() == [2.0, 0.0, 1.0]
    assert record.per_parameter["share_above_one"] == pytest.approx([2 / 3, 0.0, 1 / 3])


def test_nonfinite_gradients_of_a_step() -> None:
    """Non-finite elements are counted, make the maximum non-finite, and count as above one."""
    parameters = parameters_with(torch.tensor([1.0, math.nan, -math.inf]), torch.ones(3))
    reading = measure.GradientReading.take(parameters, 1.0)
    assert reading.norms.nonfinite.tolist() == [2, 0]
    assert math.isnan(reading.norms.total)
    record = measure.with_details(record_of(parameters), parameters, 1.0)
    assert record.grad_max is not None
    assert math.isnan(record.grad_max)
    assert record.per_parameter["share_above_one"].tolist() == [1.0, 1.0]


def test_a_step_without_gradients() -> None:
    """Where no parameter has a gradient, the reading says so, and all that is measured is zero."""
    parameters = parameters_with(None, None)
    assert not measure.GradientReading.take(parameters, 1.0).any
    assert measure.with_details(record_of(parameters), parameters, 1.0).grad_max == 0.0


def test_shares_of_complex_and_sparse_gradients() -> None:
    """A complex element counts once, by its modulus, and a sparse gradient's share is of all its elements."""
    numbers = torch.tensor([3 + 4j, 0.8 + 0.8j, 0.1j])
    entries = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([5.0]), (3,))
    parameters = parameters_with(numbers, entries)
    record = measure.with_details(record_of(parameters), parameters, 1.0)
    assert record.per_parameter["share_above_one"] == pytest.approx([2 / 3, 1 / 3])


def test_a_reading_knows_whether_the_gradients_are_still_the_same() -> None:
    """A write, a replacement and a removal are noticed."""
    changes: list[Callable[[Any], Any]] = [
        lambda parameter: parameter.grad.mul_(0.5),
        lambda parameter: setattr(parameter, "grad", parameter.grad.clone()),
        lambda parameter: setattr(parameter, "grad", None),
    ]
    for change in changes:
        parameters = parameters_with(torch.ones(3), None)
        reading = measure.GradientReading.take(parameters, 1.0)
        assert reading.holds(parameters)
        change(parameters.tensors[0])
        assert not reading.holds(parameters)


def test_unscaling_is_no_write() -> None:
    """A reading taken of scaled gradients, with the scale divided out, is that of the gradients once unscaled."""
    parameters = parameters_with(torch.full((3,), 0.5))
    optimizer = SGD(parameters.tensors, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(parameters.tensors[0].sum()).backward()  # type: ignore[no-untyped-call]
    reading = measure.GradientReading.take(parameters, scaler.get_scale())
    scaler.unscale_(optimizer)
    assert reading.holds(parameters)
    assert reading.norms.total == pytest.approx(measure.GradientReading.take(parameters).norms.total, rel=1e-6)


def test_clipped_norms_of_a_step() -> None:
    """The norms after clipping go beside those before it."""
    parameters = parameters_with(torch.tensor([3.0, 4.0, 0.0]))
    record = measure.with_clipped_norm(record_of(parameters), measure_norms([torch.tensor([0.6, 0.8, 0.0])]))
    assert record.grad_norm == pytest.approx(5.0)
    assert record.grad_norm_clipped == pytest.approx(1.0)
    assert record.per_parameter["grad_norm_clipped"] == pytest.approx([1.0])
    unclipped = measure.with_clipped_norm(record_of(parameters), None)
    assert unclipped.grad_norm_clipped == pytest.approx(5.0)


@pytest.mark.parametrize("histograms", [True, False])
def test_weights_of_a_step(histograms: bool) -> None:
    """Weights, their change, and histograms of both where they are due and the parameter is shown."""
    parameters = parameters_with(None, None, include=("1",))
    copy = WeightCopy(parameters.tensors)
    with torch.no_grad():
        parameters.tensors[0].mul_(3)
        parameters.tensors[1][0] = math.inf
    record = measure.with_weight_change(record_of(parameters), parameters, copy, histograms)
    assert record.nonfinite_weights == 1
    assert record.weight_norm == math.inf
    assert record.update_ratio == math.inf
    assert record.per_parameter["update_ratio"].tolist() == [pytest.approx(2.0), math.inf]
    assert record.per_parameter["weight_norm"].tolist() == [pytest.approx(math.sqrt(27)), math.inf]
    if not histograms:
        assert not record.histograms
        return
    assert {quantity: list(named) for quantity, named in record.histograms.items()} == {
        "update": ["1"],
        "weight": ["1"],
    }
    np.testing.assert_array_equal(record.histograms["update"]["1"].counts, true_counts([0.0, 0.0]))
    np.testing.assert_array_equal(record.histograms["weight"]["1"].counts, true_counts([1.0, 1.0]))
    assert record.histograms["update"]["1"].nonfinite == record.histograms["weight"]["1"].nonfinite == 1


def test_histograms_leave_out_missing_gradients() -> None:
    """A parameter without a gradient has no histogram of it; the others' values are unscaled."""
    parameters = parameters_with(torch.tensor([2.0, -8.0, 0.0]), None)
    record = measure.with_histograms(record_of(parameters), "gradient", parameters, parameters.gradients, 2.0)
    assert list(record.histograms["gradient"]) == ["0"]
    np.testing.assert_array_equal(record.histograms["gradient"]["0"].counts, true_counts([1.0, -4.0, 0.0]))
