"""Signs that the weights show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradexplode.detect import LargeUpdate, NonFiniteWeight, WeightGrowth
from lightning_gradexplode.records import Severity, StepRecord
from tests.detect.steps import findings_of, noise, record, series


def test_nonfinite_weights_are_critical_at_once() -> None:
    """The finding counts the parameters and names the first one."""
    norms = np.array([1.0, math.nan, math.inf])
    bad = record(1, nonfinite_weights=2, per_parameter={"weight_norm": norms})
    (finding,) = findings_of(NonFiniteWeight(), [record(0), bad])
    assert (finding.sign, finding.step, finding.severity) == ("nonfinite-weight", 1, Severity.CRITICAL)
    assert (finding.value, finding.where) == (2, "second")


def test_weights_that_grow_are_a_warning_and_then_critical() -> None:
    """Weights that have left their start far behind are found, and the parameter with the largest is named."""
    records = [
        record(step, weight_norm=1.5**step, per_parameter={"weight_norm": np.array([1.0, 1.0, 1.5**step])})
        for step in range(30)
    ]
    findings = findings_of(WeightGrowth(), records)
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities)
    assert set(severities) == {Severity.WARNING, Severity.CRITICAL}
    assert "at this rate it is 40 times that in about" in findings[0].message
    assert {(finding.sign, finding.where) for finding in findings} == {("weight-growth", "third")}
    assert all(finding.value > finding.limit for finding in findings)


def test_weights_that_start_next_to_zero_have_a_long_way_to_go() -> None:
    """A new last layer grows a thousandfold and is no explosion, as long as the loss does not say so."""

    def grown(loss: float) -> list[StepRecord]:
        start = record(0, weight_norm=1e-3, weight_norm_before=1e-3, weight_count=100, update_ratio=0.3)
        norm = 1e4 if loss > 1 else 1.0
        return [
            start,
            *(record(step, weight_norm=1e-3 * 1.3**step, loss=loss, grad_norm=norm) for step in range(1, 45)),
        ]

    assert {finding.severity for finding in findings_of(WeightGrowth(), grown(0.9))} == {Severity.INFO}
    detector = WeightGrowth()
    for one in grown(0.9)[:10]:
        detector.check(one)
    assert Severity.CRITICAL in {finding.severity for finding in findings_of(detector, grown(5.0)[10:])}


def test_weights_are_judged_from_before_the_first_step() -> None:
    """A first step that multiplies the weights by fifty is critical at once."""
    (finding,) = findings_of(WeightGrowth(), [record(0, weight_norm=500.0, weight_norm_before=10.0, weight_count=9)])
    assert (finding.step, finding.severity) == (0, Severity.CRITICAL)


@pytest.mark.parametrize(
    ("last", "severity"),
    [(0.2, Severity.INFO), (0.9, Severity.CRITICAL), (-0.1, Severity.CRITICAL)],
    ids=["a good part of the loss is gone", "hardly any is", "it falls below zero"],
)
def test_weights_with_far_to_go_are_no_explosion(last: float, severity: Severity) -> None:
    """Weights that level out a hundred times above their start are no alarm if the loss has fallen towards zero."""
    norms = [100 - 99 * 0.8**step for step in range(40)]
    losses = [last + (1 - last) * 0.8**step for step in range(40)]
    records = [
        record(step, loss=loss, weight_norm=norm, weight_norm_before=norm, weight_count=1, grad_norm=1.0)
        for step, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]
    assert findings_of(WeightGrowth(), records)[-1].severity is severity


@pytest.mark.parametrize(
    "norms",
    [noise(100), [10.0 * 1.01**step for step in range(100)], [0.0] * 20, [1.0, math.nan, math.inf, 1.0]],
    ids=["steady", "doubling slowly", "zero", "not finite"],
)
def test_ordinary_weights_do_not_grow(norms: list[float]) -> None:
    """Steady weights and ones that merely double are no growth; NaN is another detector's business."""
    assert findings_of(WeightGrowth(), series("weight_norm", norms)) == []


def test_large_updates_in_a_row_are_a_warning() -> None:
    """Updates that change the weights by much of their norm are a warning and name the parameter; one alone is not."""
    norms = np.array([0.1, 3.0, 0.2])
    records = [record(step, update_ratio=2.0, per_parameter={"update_ratio": norms}) for step in range(10)]
    findings = findings_of(LargeUpdate(), records)
    assert findings
    assert {(finding.sign, finding.severity, finding.where) for finding in findings} == {
        ("large-update", Severity.WARNING, "second")
    }
    assert findings_of(LargeUpdate(), series("update_ratio", [2.0] + [1e-3] * 20)) == []
    assert findings_of(LargeUpdate(), series("update_ratio", [1e-3 * value for value in noise(100, 0.5)])) == []


@pytest.mark.parametrize(("norm", "is_found"), [(10.0, True), (1e-4, False)])
def test_large_updates_of_weights_next_to_zero_are_usual(norm: float, is_found: bool) -> None:
    """A new layer may change by a multiple of its norm at each step, since it has hardly any."""
    records = [
        record(step, update_ratio=2.0, weight_norm=norm, weight_norm_before=norm, weight_count=100) for step in range(9)
    ]
    assert bool(findings_of(LargeUpdate(), records)) is is_found


def joined(step: int, norms: list[float]) -> StepRecord:
    """Build a step of a parameter alone, or of two parameters once a larger one has joined."""
    names = ("head", "body")[: len(norms)]
    return record(
        step, parameters=names, weight_norm=math.hypot(*norms), per_parameter={"weight_norm": np.array(norms)}
    )


def test_parameters_that_join_are_no_growth() -> None:
    """Layers that are unfrozen may have a hundred times the norm of those that were trained before."""
    records = [joined(0, [1.0]), joined(1, [1.1]), *(joined(step, [1.2, 100.0]) for step in range(2, 30))]
    assert findings_of(WeightGrowth(), records) == []


def test_growth_is_measured_on_after_parameters_have_joined() -> None:
    """Those that were there before from the start of the run, those that have joined from when they did."""
    grown = [joined(step, [1.2 * 50.0, 0.5]) for step in range(2, 5)]
    assert findings_of(WeightGrowth(), [joined(0, [1.0]), joined(1, [1.2]), *grown])
    both = [joined(step, [1.2 * 50.0, 100.0 * 50.0]) for step in range(3, 5)]
    found = findings_of(WeightGrowth(), [joined(0, [1.0]), joined(1, [1.2, 100.0]), *both])
    assert {finding.severity for finding in found} == {Severity.CRITICAL}
