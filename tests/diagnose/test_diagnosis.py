"""What the findings of a run mean together."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradexplode.diagnose.diagnosis import diagnose, latest_explosion
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.report import Recorder

NAMES = ("first.weight", "middle.weight", "last.weight")


def of(sign: str, step: int, severity: Severity = Severity.CRITICAL, where: str | None = None) -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, where, 2.0, 1.0, f"{sign} was seen")


def recorded(norms: list[list[float]], clip_val: float | None = None) -> list[Recorder]:
    """Record steps with the gradient norms of three weights."""
    recorder = Recorder(NAMES)
    for step, row in enumerate(norms):
        values = np.array(row)
        recorder.add(
            StepRecord(
                step=step, parameters=NAMES, grad_norm=1.0, clip_val=clip_val, per_parameter={"grad_norm": values}
            )
        )
    return [recorder]


EVEN = [[1.0, 1.0, 1.0]] * 10


def test_where_and_since_when() -> None:
    """It began where the critical finding points to, at the first warning that belongs to it."""
    findings = [
        of("stalled-loss", 3, Severity.WARNING, "elsewhere"),
        of("large-update", 92, Severity.WARNING, "middle.weight"),
        of("diverging-loss", 95, where="last.weight"),
        of("gradient-above-one", 96, Severity.INFO),
    ]
    diagnosis = diagnose(findings, recorded(EVEN))
    assert (diagnosis.step, diagnosis.parameter) == (92, "last.weight")
    assert "95" in diagnosis.what
    assert "large-update" in diagnosis.what
    assert "stalled-loss" not in diagnosis.what
    assert "92" in diagnosis.since
    assert "3 steps before" in diagnosis.since


def test_the_latest_explosion_is_explained() -> None:
    """Of two explosions with a calm while between them the latter counts."""
    findings = [of("diverging-loss", 10), of("gradient-spike", 195, Severity.WARNING), of("weight-growth", 200)]
    assert [one.step for one in latest_explosion(findings)] == [195, 200]


def test_without_a_critical_finding_there_is_nothing_to_explain() -> None:
    """A warning alone is no explosion."""
    with pytest.raises(ValueError, match="critical"):
        diagnose([of("gradient-spike", 1, Severity.WARNING)], [])


def test_a_place_is_read_off_the_gradients_where_no_finding_has_one() -> None:
    """The parameter with the largest gradient at that step is named; NaN is larger than all."""
    assert (
        diagnose([of("diverging-loss", 1)], recorded([[1.0, 1.0, 1.0], [1.0, 5.0, 2.0]])).parameter == "middle.weight"
    )
    assert diagnose([of("nonfinite-loss", 0)], recorded([[1.0, 9.0, float("nan")]])).parameter == "last.weight"
    assert diagnose([of("nonfinite-loss", 0)], []).parameter is None


@pytest.mark.parametrize(
    ("findings", "norms", "words"),
    [
        ([of("nonfinite-loss", 5)], EVEN, "the batch"),
        ([of("nonfinite-gradient", 5)], EVEN, "backward pass"),
        ([of("large-update", 4, Severity.WARNING), of("diverging-loss", 5)], EVEN, "learning rate"),
        ([of("gradient-growth", 5)], [[100.0, 10.0, 1.0]] * 10, "100 times"),
        ([of("gradient-growth", 5)], EVEN, "grow from step to step"),
    ],
    ids=["bad batch", "backward", "learning rate", "depth", "growth"],
)
def test_causes(findings: list[Finding], norms: list[list[float]], words: str) -> None:
    """Each kind of explosion is told from the others."""
    assert words in " ".join(diagnose(findings, recorded(norms)).why)


def test_remedies_know_the_network_and_the_clip() -> None:
    """Recurrent networks get gated units and shorter sequences; a clip that did not help is said to be too high."""
    recurrent = diagnose([of("gradient-growth", 5, where="rnn.weight_hh_l0")], recorded(EVEN))
    assert any("truncated" in one for one in recurrent.remedies)
    assert not any("truncated" in one for one in diagnose([of("gradient-growth", 5)], recorded(EVEN)).remedies)
    assert any("7.5" in one for one in diagnose([of("diverging-loss", 5)], recorded(EVEN, clip_val=7.5)).remedies)
    assert any("L2" in one for one in diagnose([of("weight-growth", 5)], recorded(EVEN)).remedies)
    assert any("rollback" in one for one in diagnose([of("nonfinite-weight", 5)], recorded(EVEN)).remedies)


def test_markdown_shows_names_as_they_are() -> None:
    """Underscores and asterisks of names are not taken for emphasis."""
    markdown = diagnose([of("gradient-growth", 5, where="rnn.weight_hh_l0")], recorded(EVEN)).markdown()
    assert "rnn.weight\\_hh\\_l0" in markdown
    assert markdown.count("**") == 10
    assert "\n1. " in markdown
