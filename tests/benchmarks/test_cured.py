"""What is counted of healthy runs, on runs made up for it."""

from __future__ import annotations

import math

import pytest

from benchmarks import cured
from benchmarks.cured import Told, main, print_counts, told
from benchmarks.scenarios.probe import Outcome
from benchmarks.scenarios.recording import RecordedRun, RecordedStep
from lightning_gradexplode import Finding, Severity, StepRecord


def run(*losses: float) -> RecordedRun:
    steps = [RecordedStep(StepRecord(step=step, loss=loss), None) for step, loss in enumerate(losses)]
    return RecordedRun("made_up", 0, Outcome("healthy", None, ""), steps)


def test_a_finding_that_holds_is_reported_once() -> None:
    """Both losses are NaN, in one incident."""
    found = told("made up", run(1.0, math.nan, math.nan, 1.0), weights_every=50)
    assert [(one.step, one.sign) for one in found.reported] == [(1, "nonfinite-loss")]
    assert (found.steps, found.held, found.alarmed) == (4, 2, True)
    assert not told("made up", run(1.0, 1.0), weights_every=50).reported


def test_runs_that_are_only_counted_are_not_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings of half A are printed, and of half B only their number."""

    def made_up(half: str, *_: object) -> list[Told]:
        return [Told(f"run of {half}", 100, (Finding(7, "sign", Severity.WARNING, None, 1.0, 1.0, f"in {half}"),), 2)]

    monkeypatch.setattr(cured, "healthy", made_up)
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run of A 7: sign WARNING, in A"
    assert not any("run of B" in line or "in B" in line for line in lines)
    counts = "of 1 healthy runs 0 have a CRITICAL finding, 1 one of at least WARNING; of these 1 are reported, 10.00"
    assert [counts in line for line in lines[-2:]] == [True, True]


def test_no_runs_have_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    """A rate is 0 where there are no steps."""
    print_counts("Half A", [])
    assert "0.00 per 1,000 steps" in capsys.readouterr().out
