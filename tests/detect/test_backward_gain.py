"""Signs that the gradients at the outputs of modules show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.detect import BackwardGain
from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import Finding, ModuleGradients, Severity, StepRecord
from tests.detect.steps import findings_of, record


def profile(*norms: float, **more: Any) -> ModuleGradients:
    """Build the profile of a chain whose modules' outputs have these norms."""
    outputs = np.array(norms)
    inputs = np.array([math.nan, *norms[:-1]])
    size = len(norms)
    defaults = {"share_above_one": np.full(size, 0.25), "calls": np.ones(size)}
    unknown = {"growth_in_time": np.full(size, math.nan), "singular_value": np.full(size, math.nan)}
    with np.errstate(all="ignore"):
        gain = inputs / outputs
    names = tuple(f"layer{place}" for place in range(size))
    fields = {**defaults, **unknown, "gain": gain, **more}
    return ModuleGradients(modules=names, output_norm=outputs, input_norm=inputs, **fields)


def steps(modules: ModuleGradients, loss: float = 1.0) -> list[StepRecord]:
    """Build one step with these error gradients, whose gradient norm times norm of the weights is 100."""
    return [record(0, loss=loss, grad_norm=10.0, weight_norm=10.0, module_gradients=modules)]


@pytest.mark.parametrize(("rise", "is_found"), [(40.0, False), (90.0, False), (120.0, True)])
def test_a_normalization_layer_may_increase_the_gradient_further(rise: float, is_found: bool) -> None:
    """After a layer with small weights, as in a DCGAN, it divides by a small deviation."""
    chain = profile(10.0, 1.02 * rise, 1.01 * rise, rise, 1.0, 1.0, 1.0, 1.0)
    assert findings_of(BackwardGain(), steps(chain)) != []
    assert (findings_of(BackwardGain(), steps(replace(chain, normalizations=("layer4",)))) != []) is is_found


def test_growth_over_depth_is_a_warning_that_names_the_steepest_module() -> None:
    """The gradient grows three hundredfold, nearly all of it at one layer."""
    (finding,) = findings_of(BackwardGain(), steps(profile(300.0, 280.0, 270.0, 1.1, 1.0, 1.0)))
    assert (finding.sign, finding.step, finding.severity) == ("backward-gain", 0, Severity.WARNING)
    assert finding.where == "layer3"
    assert finding.value == pytest.approx(300.0)
    assert "25% of the elements" in finding.message


def test_growth_from_time_step_to_time_step_is_a_warning() -> None:
    """The recurrent module is named, and the message has its matrix relative to the bound."""
    times, values, calls = np.array([math.nan, 1.5]), np.array([math.nan, 2.5]), np.array([1.0, 30.0])
    modules = profile(1.0, 1.0, growth_in_time=times, singular_value=values, calls=calls)
    (finding,) = findings_of(BackwardGain(), steps(modules))
    assert finding.where == "layer1"
    assert finding.value == pytest.approx(1.5)
    assert "2.5 times Pascanu's bound" in finding.message


def test_a_recurrent_layer_is_judged_by_its_gain_over_the_whole_sequence() -> None:
    """One call of it contains all time steps: the gradient at its inputs is five hundred times that at its outputs."""
    times, gain = np.array([math.nan, 1.2]), np.array([math.nan, 500.0])
    (finding,) = findings_of(BackwardGain(), steps(profile(1.0, 1.0, growth_in_time=times, gain=gain)))
    assert "grows 1.2 times at each time step" in finding.message


@pytest.mark.parametrize(("head", "is_found"), [(0.1, True), (10.0, False)])
def test_a_module_that_many_residual_branches_share_is_not_recurrent(head: float, is_found: bool) -> None:
    """Its gradients in eight calls differ a hundredfold, and all are far below those of the module after it (CoaT)."""
    times, calls = np.array([math.nan, 2.0, math.nan]), np.array([1.0, 8.0, 1.0])
    shared = profile(1.0, 1.0, head, growth_in_time=times, calls=calls)
    assert (findings_of(BackwardGain(), steps(shared)) != []) is is_found


@pytest.mark.parametrize(
    "modules",
    [
        profile(1.0, 1.0, 1.0),
        profile(1e-9, 1e-6, 1.0),
        profile(5.0, 3.0, 1.0),
        profile(1.0),
        profile(math.nan, math.inf, math.nan),
        profile(0.0, 0.0),
        profile(1.0, 1.0, singular_value=np.array([50.0, math.nan])),
        profile(1.0, 1.0, growth_in_time=np.array([math.nan, 1.5]), calls=np.array([1.0, 8.0])),
        profile(1.0, 1.0, growth_in_time=np.array([math.nan, 1.3])),
    ],
    ids=["flat", "vanishing", "mild", "one module", "not finite", "zero", "a large matrix alone", "few calls", "short"],
)
def test_ordinary_profiles_are_no_sign(modules: ModuleGradients) -> None:
    """Nor is a matrix above the bound by itself, which is necessary and not sufficient."""
    assert findings_of(BackwardGain(), steps(modules)) == []


@pytest.mark.parametrize(
    ("loss", "share", "found"),
    [(1.0, 0.01, 1), (1.1, 0.01, 0), (1.1, 0.2, 1), (math.nan, 0.01, 1)],
    ids=["steep loss", "flat loss", "huge loss", "unknown slope"],
)
def test_a_gain_is_harmless_while_the_gradients_are_small(loss: float, share: float, found: int) -> None:
    """Weights that change by their own norm change the loss by 100 times its size at the start, or by less.

    A loss that is huge because the outputs grow over the layers is as large as its gradients, which are above 1.
    """
    modules = profile(300.0, 280.0, 270.0, 1.1, 1.0, 1.0, share_above_one=np.full(6, share))
    assert len(findings_of(BackwardGain(), steps(modules, loss))) == found


def test_the_size_of_the_loss_is_that_of_the_start() -> None:
    """A run that has converged has the same gain, and gradients that are small, but large against its loss."""
    few = profile(300.0, 1.0, share_above_one=np.zeros(2))
    start = record(0, loss=1.0, grad_norm=1.0, weight_norm=10.0, module_gradients=profile(1.0, 1.0))
    late = record(1, loss=1e-3, grad_norm=0.1, weight_norm=10.0, module_gradients=few)
    assert findings_of(BackwardGain(), [start, late]) == []
    assert len(findings_of(BackwardGain(), [late])) == 1


class Locating(Detector):
    """Finds something at each step and without a place."""

    sign = "locating"
    reads = ("grad_norm",)
    locates_growth = True

    def check(self, record: StepRecord) -> Finding | None:
        """Find."""
        return self.finding(record, Severity.INFO, 1.0, 0.0, "")


def test_an_explosion_is_said_to_begin_at_the_steepest_module() -> None:
    """The module that was steepest when last measured is named; a mild rise is no place."""
    detectors = DetectorSet([Locating()])
    assert detectors.check_before_update(record(0, module_gradients=profile(3.0, 1.0, 1.0)))[0].where is None
    detectors.check_before_update(record(1, module_gradients=profile(300.0, 280.0, 270.0, 1.1, 1.0, 1.0)))
    assert detectors.check_before_update(record(2))[0].where == "layer3"
    other = DetectorSet([Locating()])
    other.load_state_dict(detectors.state_dict())
    assert other.check_before_update(record(3))[0].where == "layer3"


def test_a_module_that_shares_its_inputs_is_not_said_to_amplify() -> None:
    """The gradient at the inputs of a gate is that of all experts behind the same inputs together."""
    alone = profile(100.0, 1.0, 1.0, 1.0)
    assert findings_of(BackwardGain(total=1000.0), steps(alone))
    shared = replace(alone, input_norm=np.array([math.nan, 100.0, 100.0, 1.0]))
    assert not findings_of(BackwardGain(total=1000.0), steps(shared))


def test_the_start_of_a_residual_branch_is_not_said_to_amplify() -> None:
    """The gradients of a Llama of two layers with the usual initialization: those of the branches are small throughout.

    The gradient at the inputs of a normalization is that of the residual connection, which is there further up as well.
    """
    branch = [0.015, 0.0015, 0.0015, 0.091, 0.98, 0.0041, 0.018, 0.036, 0.018, 0.96]
    inputs = [1.24, 0.015, 0.015, 0.015, 0.16, 0.98, 0.0041, 0.018, 0.0041, 0.22, 0.96]
    outputs = np.array([1.24, *branch, 0.024, 0.15])
    usual = replace(
        profile(*outputs),
        input_norm=np.array([math.nan, *inputs, 0.024]),
        gain=np.array([math.nan, *inputs, 0.024]) / outputs,
    )
    assert findings_of(BackwardGain(), steps(usual)) == []
    loud = np.where(np.arange(13) == 1, 100.0, 1.0)  # the first normalization by itself, with nothing beside it
    alone = replace(usual, input_norm=usual.input_norm * loud, gain=usual.gain * loud)
    assert findings_of(BackwardGain(total=1000.0), steps(alone))


@pytest.mark.parametrize(("later", "is_found"), [(1e-3, True), (10.0, False)])
def test_a_branch_that_is_multiplied_by_a_small_factor_is_not_said_to_amplify(later: float, is_found: bool) -> None:
    """Functions within a branch increase its gradient, which is still far below that of what follows (CaiT)."""
    outputs = np.array([*[1.0] * 4, *[1e-3] * 4, *[later] * 4])
    inputs = np.array([math.nan, 1.1, 1.2, 1.3, 1e-3, 1.1e-3, 1.2e-3, 1.3e-3, later, later, later, later])
    scaled = replace(profile(*outputs), input_norm=inputs, gain=inputs / outputs)
    assert (findings_of(BackwardGain(total=1e6), steps(scaled)) != []) is is_found


@pytest.mark.parametrize(("modules", "is_found"), [(400, False), (40, True)])
def test_slow_growth_over_many_modules_is_harmless(modules: int, is_found: bool) -> None:
    """With batch normalization the gradient grows with depth; with few modules the same gain is a steep one."""
    chain = profile(*np.geomspace(300.0, 1.0, modules).tolist())
    assert (findings_of(BackwardGain(), steps(chain)) != []) is is_found
