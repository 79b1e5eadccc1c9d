"""What counts as caught, as early and as false, on runs made up for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.detection import Verdict, main, matched, print_families, print_places, summary
from benchmarks.scenarios import COUNTED, FAMILIES, Family, recording
from benchmarks.scenarios.probe import Outcome
from benchmarks.scenarios.recording import RecordedRun, RecordedStep
from lightning_gradexplode import Finding, Severity, StepRecord

STEPS = [RecordedStep(StepRecord(step=step), None) for step in range(100)]


def verdict(
    lost: int | None, *alarms: int, begins: int = 0, where: str | None = None, named: str | None = None
) -> Verdict:
    family = Family("made_up", "", "explodes", "made up", FAMILIES[0].build, begins, where)
    outcome = Outcome("healthy" if lost is None else "explodes", lost, "")
    critical = tuple(Finding(step, "sign", Severity.CRITICAL, named, 1, 1, "") for step in alarms)
    return Verdict(family, RecordedRun("made_up", 0, outcome, STEPS), alarms, critical)


def test_an_alarm_one_step_after_the_loss_is_in_time() -> None:
    """The lead of an alarm is counted back from the loss of the run; two steps after it is too late."""
    assert verdict(50, 40, 60).lead == 10
    assert verdict(50, 51).lead == -1
    assert verdict(50, 52).lead is None
    assert verdict(50).lead is None


def test_an_alarm_before_the_trouble_began_catches_nothing() -> None:
    """It is an alarm at a healthy step, and what follows decides whether the run was caught."""
    early = verdict(50, 10, 48, begins=40)
    assert (early.lead, early.calm_alarms, early.calm_steps) == (2, 1, 40)
    assert verdict(50, 10, begins=40).lead is None


def test_alarms_of_healthy_runs() -> None:
    """Each step with an alarm counts once, however many findings it has."""
    false = verdict(None, 3, 3, 9)
    assert (false.calm_alarms, false.calm_steps, false.lead) == (2, 100, None)


def test_the_planted_module_is_named_by_itself_or_a_parameter() -> None:
    """A name that only begins with the same letters is another module's."""
    assert verdict(50, 40, where="layers.1", named="layers.1.weight").names_the_module is True
    assert verdict(50, 40, where="layers.1", named="layers.11.weight").names_the_module is False
    assert verdict(50, 40, where="layers.1", named=None).names_the_module is None


def test_the_line_of_a_rule() -> None:
    """Two of three lost runs are caught with leads 10 and 0; one of two healthy runs has two alarms in 200 steps."""
    verdicts = [verdict(50, 40), verdict(50, 50), verdict(50), verdict(None, 1, 2), verdict(None)]
    assert summary("rule", verdicts).split() == ["rule", "2", "of", "3", "1", "of", "2", "10.0", "5", "5", "of", "2"]


def test_a_rule_waits_until_its_false_alarms_are_few_enough() -> None:
    """One healthy run has three alarms: with none allowed the fourth counts, which catches one of two lost runs."""
    verdicts = [verdict(50, 40, 41, 42, 45), verdict(50, 40), verdict(None, 1, 2, 3), verdict(None)]
    needed, found = matched(verdicts, 0)
    assert needed == 4
    assert [one.lead for one in found] == [5, None, None, None]
    assert not any(one.alarms for one in found if one.healthy)
    assert matched(verdicts, 1) == (1, verdicts)


def test_families_that_are_only_counted_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Their names would tell an author of rules which runs to look at."""
    known = verdict(50, 40, where="layers.1", named="layers.1")
    counted = replace(known, family=COUNTED[0])
    print_families([known, counted])
    print_places([known, counted])
    printed = capsys.readouterr().out
    assert "made_up" in printed
    assert COUNTED[0].name not in printed


def test_growth_is_slow_from_six_steps_on() -> None:
    """Counted from the last step at which the loss was near its start and the weights were small."""

    def growing(losses: list[float], weights: list[float]) -> Verdict:
        records = [
            StepRecord(step=step, loss=loss, weight_norm=norm, weight_norm_before=1.0)
            for step, (loss, norm) in enumerate(zip(losses, weights, strict=True))
        ]
        steps = [RecordedStep(one, one) for one in records]
        outcome = Outcome("explodes", len(losses) - 1, "")
        return Verdict(FAMILIES[0], RecordedRun("made_up", 0, outcome, steps), ())

    assert not growing([1.0] * 10 + [5.0] * 5, [1.0] * 15).is_slow
    assert growing([1.0] * 10 + [5.0] * 6, [1.0] * 16).is_slow
    assert growing([1.0] * 16, [1.0] * 10 + [4.0] * 6).is_slow
    assert not growing([1.0] * 16, [1.0] * 16).is_slow


def test_the_program_prints_its_tables(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One family and one seed go all the way through training, judging and printing."""
    monkeypatch.setattr(recording, "CACHE", tmp_path)
    main(["--family", "exponential_link", "--seeds", "1"])
    out = capsys.readouterr().out
    assert "exponential_link" in out
    assert "All families" in out
    assert "Warnings reported: " in out
    assert "Lightning SpikeDetection" in out
