"""Steps that can show no rise are evaluated together, with the same results as one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradexplode.detect import default_detectors
from lightning_gradexplode.detect.calm_range import CalmRange
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import Finding, Severity, StepRecord
from tests.detect.steps import PARAMETERS, noise, record

STEPS = 160

Reports = list[tuple[int, Finding]]
"""Each finding, with the step at which it was returned."""


def evaluated(
    losses: Sequence[float], norms: Sequence[float], weights: Sequence[float], holds: bool, logged: int = 50
) -> tuple[DetectorSet, Reports]:
    """Evaluate a run.

    Args:
        losses: The loss of each step.
        norms: The gradient norm of each step.
        weights: The norm of the weights after each step.
        holds: Whether steps may be held.
        logged: Interval at which everything is measured.

    Returns:
        The detectors, and what they have returned when.
    """
    detectors, reports, held = DetectorSet(default_detectors()), list[tuple[int, Finding]](), list[StepRecord]()
    for step, (loss, norm, weight) in enumerate(zip(losses, norms, weights, strict=True)):
        is_due = step % logged == logged - 1
        before = StepRecord(
            step=step,
            parameters=PARAMETERS,
            loss=loss,
            grad_norm=norm,
            grad_max=norm if is_due else None,
            nonfinite_count=0 if math.isfinite(norm) else 1,
            weight_norm_before=weights[0] if step == 0 else None,
            per_parameter={"grad_norm": np.full(3, norm * 3**-0.5)},
        )
        may_wait = detectors.screen(loss, norm) and holds and not is_due
        if may_wait and not detectors.needs_weights:
            held.append(before)
            continue
        if may_wait and detectors.weights_are_steady(weight):  # all are evaluated after the update
            after = replace(before, weight_norm=weight, nonfinite_weights=0)
            found = [finding for one in [*held, before] for finding in detectors.check_before_update(one, is_new=False)]
            held, found = [], [*found, *detectors.check_after_update(after)]
            signs = {finding.sign for _, finding in reports}  # no step of an incident may wait
            assert all(finding.severity is not Severity.CRITICAL or finding.sign in signs for finding in found)
            reports += [(step, finding) for finding in found]
            continue
        found = [finding for one in held for finding in detectors.check_before_update(one, is_new=False)]
        held = []
        found += detectors.check_before_update(before, is_new=False)
        is_measured = is_due or detectors.needs_weights
        after = replace(before, weight_norm=weight, nonfinite_weights=0) if is_measured else before
        found += detectors.check_after_update(after)
        reports += [(step, finding) for finding in found]
    reports += [(len(losses), finding) for one in held for finding in detectors.check_before_update(one, is_new=False)]
    return detectors, reports


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[float], list[float], list[float]]:
    """Draw a noisy run in which loss, gradients and weights jump, fall, drift, and are not finite at times."""
    seed = draw(st.integers(0, 2**16))
    losses, norms = (np.array(noise(STEPS, draw(st.floats(0.0, 0.5)), seed + part)) for part in (0, 1))
    weights = np.full(STEPS, 10.0)
    losses *= np.exp(-draw(st.floats(-0.01, 0.05)) * np.arange(STEPS))
    norms *= np.exp(draw(st.floats(-0.05, 0.01)) * np.arange(STEPS))
    for values in draw(st.lists(st.sampled_from([losses, norms, weights]), max_size=4)):
        begin, length = draw(st.integers(60, STEPS - 1)), draw(st.integers(1, 60))
        factor = draw(st.sampled_from([0.0, 1e-9, 0.1, 1.5, 3.0, 20.0, 1e4, math.inf, math.nan, -1.0]))
        with np.errstate(all="ignore"):
            values[begin : begin + length] *= factor
        if draw(st.booleans()) and math.isfinite(factor):
            values[begin:] *= draw(st.floats(1.0, 1.3)) ** np.arange(STEPS - begin)
    weights = np.where(np.isfinite(weights), np.abs(weights), 10.0)
    return losses.tolist(), np.abs(norms).tolist(), weights.tolist()


@settings(max_examples=40)
@given(runs())
def test_held_steps_are_evaluated_as_one_by_one(drawn: tuple[list[float], list[float], list[float]]) -> None:
    """Findings and the state in a checkpoint are the same; only what is no rise comes later, by at most eight steps."""
    one_by_one, expected = evaluated(*drawn, holds=False)
    together, reports = evaluated(*drawn, holds=True)
    assert repr([finding for _, finding in reports]) == repr([finding for _, finding in expected])
    assert repr(together.state_dict()) == repr(one_by_one.state_dict())
    late = [(step, finding) for step, finding in reports if step != finding.step]
    assert all(finding.severity is not Severity.CRITICAL for _, finding in late)
    assert all(step - finding.step <= 8 for step, finding in late)


def test_most_steps_of_a_calm_run_are_held() -> None:
    """All but the first 64 and some that are by chance above the usual range."""
    count = 400
    detectors, held = DetectorSet(default_detectors()), 0
    for step, (loss, norm) in enumerate(zip(noise(count), noise(count, seed=1), strict=True)):
        one = StepRecord(step=step, parameters=PARAMETERS, loss=loss, grad_norm=norm, nonfinite_count=0)
        held += detectors.screen(loss, norm)
        measured = replace(one, weight_norm=10.0, nonfinite_weights=0) if detectors.needs_weights else one
        detectors.check_before_update(measured, is_new=False)
        detectors.check_after_update(measured)
    assert held > 0.7 * count


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_a_step_of_a_rise_is_outside_of_the_calm_range(field: str) -> None:
    """So are all steps of a level that has newly risen, until it has lasted for a block; what is not finite is, too."""
    calm_range, names = CalmRange(size=8), {"loss": "loss", "grad_norm": "norm"}
    steps = [record(step, **{field: 2.0 if step >= 20 else 1.0}) for step in range(60)]
    inside = [calm_range.contains(one.loss, one.grad_norm) for one in steps]
    assert inside == [False] * 16 + [True] * 4 + [False] * 12 + [True] * 28
    assert not calm_range.contains(**{"loss": 1.0, "norm": 1.0, names[field]: math.nan})
    assert not calm_range.contains(**{"loss": 1.0, "norm": 1.0, names[field]: None})
    assert calm_range.contains(1.0, 1.0)
