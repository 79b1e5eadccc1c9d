"""What is measured of one optimizer step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_gradexplode.engine.accumulation import AccumulatedReading
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.measure.parameters import parameters_of
from tests.measure.tensors import true_counts


def step_with(
    *gradients: Tensor | None, include: tuple[str, ...] = ("*",), scale: float = 1.0, histograms: bool = True
) -> Step:
    """Begin a step of parameters of ones, called 0, 1, ..., with these gradients, and read their norms."""
    module = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=None if g is None else g.dtype)) for g in gradients])
    for parameter, gradient in zip(module, gradients, strict=True):
        parameter.grad = gradient
    optimizer = SGD(module.parameters(), lr=0.1)
    parameters = parameters_of(optimizer, module, include)
    reading = AccumulatedReading(GradientReading.take(parameters, scale), 0, 1, False, False, False)
    step = Step(OptimizerState(0, optimizer, [], None, lambda _: parameters), parameters, reading, 3, True, histograms)
    step.set_gradient_norms(reading.gradients.norms())
    step.scale, step.phase = scale, Phase.MEASURED
    return step


def test_details_are_measured_at_logged_steps() -> None:
    """Maxima, of all and of each parameter, and the shares above one, with the scale divided out."""
    step = step_with(torch.tensor([3.0, -4.0, 0.0]), None, torch.tensor([0.5, 1.5, -2.0]), scale=2.0)
    step.measure_gradients(clips_by_value=False)
    record = step.record()
    assert record.grad_max == 2.0
    assert record.per_parameter["grad_max"].tolist() == [2.0, 0.0, 1.0]
    assert record.per_parameter["share_above_one"] == pytest.approx([2 / 3, 0.0, 1 / 3])


def test_nonfinite_elements_make_the_maximum_nonfinite() -> None:
    """They count as above one."""
    step = step_with(torch.tensor([1.0, math.nan, -math.inf]), torch.ones(3))
    step.measure_gradients(clips_by_value=False)
    record = step.record()
    assert record.grad_max is not None
    assert math.isnan(record.grad_max)
    assert record.per_parameter["share_above_one"].tolist() == [1.0, 1.0]


def test_maxima_are_measured_for_clipping_by_value() -> None:
    """Between logs nothing but the maxima is measured, and that only where the clip needs them."""
    for by_value, expected in ((True, 4.0), (False, None)):
        step = step_with(torch.tensor([3.0, -4.0, 0.0]))
        step.scalars_due = False
        step.measure_gradients(by_value)
        assert step.record().grad_max == expected
        assert "share_above_one" not in step.record().per_parameter


def test_a_step_without_gradients_has_a_maximum_of_zero() -> None:
    """Where no parameter has a gradient all that is measured is zero."""
    step = step_with(None, None)
    step.measure_gradients(clips_by_value=False)
    assert step.record().grad_max == 0.0


def test_shares_of_complex_and_sparse_gradients() -> None:
    """A complex element counts once, by its modulus, and a sparse gradient's share is of all its elements."""
    numbers = torch.tensor([3 + 4j, 0.8 + 0.8j, 0.1j])
    entries = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([5.0]), (3,))
    step = step_with(numbers, entries)
    step.measure_gradients(clips_by_value=False)
    assert step.record().per_parameter["share_above_one"] == pytest.approx([2 / 3, 1 / 3])


def test_norms_after_clipping_are_measured() -> None:
    """They go beside those before it; where nothing clips they are the same."""
    step = step_with(torch.tensor([3.0, 4.0, 0.0]))
    step.measure_clipped(may_be_clipped=False)
    assert step.record().grad_norm_clipped == pytest.approx(5.0)
    for gradient in step.parameters.gradients:
        assert gradient is not None
        gradient.mul_(0.2)
    step.measure_clipped(may_be_clipped=True)
    record = step.record()
    assert record.grad_norm == pytest.approx(5.0)
    assert record.grad_norm_clipped == pytest.approx(1.0)
    assert record.per_parameter["grad_norm_clipped"] == pytest.approx([1.0])


@pytest.mark.parametrize("histograms", [True, False])
def test_weights_and_their_change_are_measured(histograms: bool) -> None:
    """Weights, their change, and histograms of both where they are due and the parameter is shown."""
    step = step_with(None, None, include=("1",), histograms=histograms)
    step.keep_weights(None)
    with torch.no_grad():
        step.parameters.tensors[0].mul_(3)
        step.parameters.tensors[1][0] = math.inf
    step.measure_weights()
    record = step.record()
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
    step = step_with(torch.tensor([2.0, -8.0, 0.0]), None, scale=2.0)
    step.measure_gradient_histograms()
    histograms = step.record().histograms["gradient"]
    assert list(histograms) == ["0"]
    np.testing.assert_array_equal(histograms["0"].counts, true_counts([1.0, -4.0, 0.0]))


def test_a_record_cannot_be_changed() -> None:
    """Arrays and mappings of a record refuse to be written to, so that no part of a user changes what others see."""
    record = step_with(torch.ones(3)).record()
    with pytest.raises(ValueError, match="read-only"):
        record.per_parameter["grad_norm"][0] = 7.0
    with pytest.raises(TypeError):
        record.per_parameter["other"] = record.per_parameter["grad_norm"]  # type: ignore[index]
