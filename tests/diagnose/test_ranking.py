"""From evidence to a ranked diagnosis."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace

import pytest

import lightning_gradexplode
from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.ranking import rank
from lightning_gradexplode.records import CAUSE_KINDS, Cause, Evidence, Severity
from tests.diagnose.evidence import batch, diverged, failed, field, finding, growing, history
from tests.diagnose.fault_examples import FAULTS
from tests.diagnose.growth_examples import GROWTH, OVERSHOOT

EXAMPLES = {**FAULTS, **GROWTH}
PRICE = field("[1]", least=1e5, greatest=6e5, mean=3e5, std=1e5, usual_least=1e5, usual_greatest=6e5)


@pytest.mark.parametrize("case", EXAMPLES)
def test_the_cause_is_named(case: str) -> None:
    """Each kind is recognized by evidence of its own."""
    kind, evidence = EXAMPLES[case]
    diagnosis = diagnose(evidence)
    assert diagnosis.causes[0].kind == kind, diagnosis


@pytest.mark.parametrize("case", EXAMPLES)
def test_remedies_are_code_that_can_be_run(case: str) -> None:
    """Code between backticks parses, and every name of the package in it exists."""
    for remedy in (one for cause in diagnose(EXAMPLES[case][1]).causes for one in cause.remedies):
        for code in re.findall(r"`([^`]+)`", remedy):
            ast.parse(code)
            for name in re.findall(r"\b(Gradient\w+|Recurrent\w+|WeightPenalty|AutoPolicy)\(", code):
                assert name in lightning_gradexplode.__all__


@pytest.mark.parametrize("case", EXAMPLES)
def test_a_diagnosis_is_strict_json(case: str) -> None:
    """What is written to a file has a version, and no value that JSON has no notation for."""
    plain = json.loads(json.dumps(diagnose(EXAMPLES[case][1]).as_dict(), allow_nan=False))
    assert plain["version"] == 1
    assert all(one["kind"] in CAUSE_KINDS and 0 <= one["confidence"] <= 1 for one in plain["causes"])


@pytest.mark.parametrize(
    "case", [name for name, (kind, _) in EXAMPLES.items() if kind not in ("learning-rate", "unknown")]
)
def test_overshoot_beside_a_cause_is_not_attributed_to_the_rate(case: str) -> None:
    """A step that overshoots is no evidence for the rate where something else makes updates large."""
    kind, evidence = EXAMPLES[case]
    if evidence.experiments is not None:
        return
    assert diagnose(replace(evidence, experiments=OVERSHOOT)).causes[0].kind == kind


def test_an_earlier_harmless_warning_does_not_change_the_cause() -> None:
    """A large first update, long before a row of NaN, is no part of the explanation."""
    nan_row = failed(12, batch=batch(field(nan_count=1, nonfinite_rows=(3,))))
    warned = replace(nan_row, findings=(finding("large-update", 1, Severity.WARNING), *nan_row.findings), step=1)
    assert diagnose(warned).causes == diagnose(nan_row).causes
    assert diagnose(warned).since is None


def test_what_only_warned_in_a_run_that_has_learned_is_no_cause() -> None:
    """Prices as targets explain nothing where the loss has come down far below their variance after a warning."""
    kind, evidence = "unscaled-data", diverged(batch=batch(field(), replace(PRICE, usual_std=1e5)))
    warned = replace(evidence, findings=(finding("backward-gain", 1, Severity.WARNING),))
    assert diagnose(warned).causes[0].kind == kind
    assert diagnose(replace(warned, later_loss=9e9)).causes[0].kind == kind
    assert diagnose(replace(warned, later_loss=1e6)).causes[0].kind == "unknown"
    assert diagnose(replace(evidence, later_loss=1e6)).causes[0].kind == kind


def test_nothing_is_looked_for_in_anomaly_mode_where_all_was_finite() -> None:
    """Without a value that is not finite there is no operation to find, and no batch to leave out."""
    found = diagnose(Evidence(3, 3, (finding("backward-gain", 3, Severity.WARNING),)))
    assert found.causes[0].kind == "unknown"
    assert not found.remedies


def test_targets_outside_of_the_range_of_a_loss_explain_that_it_falls_below_zero() -> None:
    """A pixel label of 255, which marks what is to be ignored, makes a binary cross-entropy fall without end."""
    falls, targets = (
        Cause("loss-without-floor", None, ("The loss falls.",), 0.85, ()),
        Cause("target-out-of-range", "road", ("`road` ranges from 0 to 255.",), 0.7, ()),
    )
    assert [one.kind for one in rank((falls, targets))] == ["target-out-of-range", "loss-without-floor"]


@pytest.mark.parametrize(("sign", "is_advised"), [("gradient-growth", True), ("zero-gradient", False)])
def test_gradients_of_zero_are_not_to_be_clipped(sign: str, is_advised: bool) -> None:
    """Of an unknown cause in a run that has diverged."""
    values = {name: growing()[name] for name in ("loss", "grad_norm")}
    known = diverged(findings=(finding(sign, 11, Severity.WARNING),), history=(history(values),))
    first = diagnose(known).causes[0]
    assert first.kind == "unknown"
    assert any("clip" in one for one in first.remedies) is is_advised
