"""The findings of a run: kept, logged once, and written into reports."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lightning_gradexplode.engine.findings import MOST_FINDINGS, FindingLog
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.report import Recorder
from tests.detect.steps import through_checkpoint


def find(step: int, severity: Severity = Severity.CRITICAL, sign: str = "gradient-growth") -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, None, 2.0, 1.0, "it grows")


def add(log: FindingLog, *findings: Finding) -> None:
    """Add a step's findings, and publish them."""
    log.add(findings)
    log.publish([Recorder(())])


def test_findings_are_kept_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A lasting sign is one finding and one message, and not one for each step."""
    log = FindingLog(LoggerCollection([]), None, is_main_process=True)
    for step in range(50):
        add(log, find(step))
    assert log.findings == [find(0)]
    assert len(caplog.records) == 1


def test_an_explosion_is_told_once_and_what_follows_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Also where two signs are critical at the same step; after a calm while the next explosion is told anew."""
    log = FindingLog(LoggerCollection([]), None, is_main_process=True, responses=["StopTraining"])
    for step, signs in ((0, "ab"), (1, "cd"), (2, "e"), (300, "f")):
        add(log, *(find(step, sign=sign) for sign in signs))
    log.close()
    first, rest, second = (one.getMessage() for one in caplog.records)
    assert "CRITICAL at step 0: a" in first
    assert "StopTraining" in first
    assert rest == "gradexplode: the incident went on: b at step 0, c at step 1, d at step 1, e at step 2"
    assert "CRITICAL at step 300: f" in second


def test_other_processes_keep_findings_and_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On all processes but the main one findings are known, so that responses are the same, but not told."""
    log = FindingLog(LoggerCollection([]), tmp_path / "report", is_main_process=False)
    add(log, find(0))
    assert log.findings == [find(0)]
    assert not caplog.records
    assert not (tmp_path / "report").exists()


def test_the_latest_findings_are_kept() -> None:
    """Of very many findings the oldest are dropped."""
    log = FindingLog(LoggerCollection([]), None, is_main_process=False)
    for step in range(MOST_FINDINGS + 50):
        log.add([find(step, sign=f"sign {step}")])
    assert [finding.step for finding in log.findings] == list(range(50, MOST_FINDINGS + 50))


def test_findings_go_through_a_checkpoint() -> None:
    """After a checkpoint the findings are there, and what was told is not told again."""
    one, other = (FindingLog(LoggerCollection([]), None, is_main_process=False) for _ in range(2))
    one.add([find(0), find(0, Severity.WARNING, "gradient-spike")])
    other.load_state_dict(through_checkpoint(one.state_dict()))
    assert other.findings == one.findings
    assert other.add([find(1)]) == []
    assert other.add([find(100)]) == [find(100)]


def test_reports_are_written_of_critical_findings(tmp_path: Path) -> None:
    """A warning writes no report; a critical finding writes one of all findings so far."""
    folder = tmp_path / "report"
    log = FindingLog(LoggerCollection([]), folder, is_main_process=True)
    add(log, find(0, Severity.WARNING, "gradient-spike"))
    assert not folder.exists()
    add(log, find(1))
    signs = [json.loads(line)["sign"] for line in (folder / "findings.jsonl").read_text().splitlines()]
    assert signs == ["gradient-spike", "gradient-growth"]


def test_a_report_that_cannot_be_written_costs_the_report_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be made is told in one warning that names it, and the run goes on."""
    (tmp_path / "file").write_text("in the way")
    log = FindingLog(LoggerCollection([]), tmp_path / "file" / "report", is_main_process=True)
    add(log, find(0))
    (told,) = (one for one in caplog.records if one.levelno == logging.WARNING)
    assert str(tmp_path / "file" / "report") in told.getMessage()
