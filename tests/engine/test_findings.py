"""The findings of a run: kept, and logged once an incident."""

from __future__ import annotations

import pytest

from lightning_gradexplode.engine.findings import MAX_FINDINGS, FindingLog
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console
from lightning_gradexplode.records import Finding, Severity
from tests.detect.steps import through_checkpoint


def find(step: int, severity: Severity = Severity.CRITICAL, sign: str = "gradient-growth") -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, None, 2.0, 1.0, "it grows")


def test_a_lasting_sign_is_one_finding() -> None:
    """It is kept once, not once for each step."""
    log = FindingLog(LoggerCollection([]), Console())
    for step in range(50):
        log.add([find(step)])
    assert log.findings == [find(0)]
    assert log.take_critical() == [find(0)]
    assert log.take_critical() == []


def test_a_warning_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """What follows in the same incident is one further line at its end."""
    log = FindingLog(LoggerCollection([]), Console())
    for step in range(5):
        log.add([find(step, Severity.WARNING)])
    assert len(caplog.records) == 1
    assert "gradient-growth" in caplog.records[0].getMessage()


def test_other_processes_keep_findings_and_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """On all processes but the main one findings are known, so that responses are the same."""
    log = FindingLog(LoggerCollection([]), None)
    assert log.add([find(0)]) == [find(0)]
    assert log.findings == [find(0)]
    assert not caplog.records


def test_the_latest_findings_are_kept() -> None:
    """Of very many findings the oldest are dropped."""
    log = FindingLog(LoggerCollection([]), None)
    for step in range(MAX_FINDINGS + 50):
        log.add([find(step, sign=f"sign {step}")])
    assert [finding.step for finding in log.findings] == list(range(50, MAX_FINDINGS + 50))


def test_findings_go_through_a_checkpoint() -> None:
    """After a checkpoint the findings are there, and what was new is not new again."""
    one, other = (FindingLog(LoggerCollection([]), None) for _ in range(2))
    one.add([find(0), find(0, Severity.WARNING, "gradient-spike")])
    other.load_state_dict(through_checkpoint(one.state_dict()))
    assert other.findings == one.findings
    assert other.add([find(1)]) == []
    assert other.add([find(100)]) == [find(100)]
