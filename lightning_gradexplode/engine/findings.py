"""The findings of a run: kept, logged to console and loggers, and written into reports."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_gradexplode.diagnose import advice_for, diagnose
from lightning_gradexplode.engine.incidents import IncidentTracker
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console, log, log_to_terminal
from lightning_gradexplode.records import Diagnosis, Evidence, Finding, Report, ReportContent, Severity
from lightning_gradexplode.report import Recorder, ReportFolder, write_report

MOST_FINDINGS = 1000
"""Number of findings that are kept; the oldest are dropped."""


class FindingLog:
    """Keeps the findings of a run, and logs those that are new.

    Args:
        loggers: The loggers of the run.
        folder: Where reports are written; None for no reports.
        is_main_process: Whether this process logs and writes.
        responses: Names of the responses that act.

    Attributes:
        findings: All that were new to their incident, oldest first; of more than `MOST_FINDINGS` the latest.
        incidents: The tracker of incidents.
    """

    def __init__(
        self, loggers: LoggerCollection, folder: Path | None, is_main_process: bool, responses: Sequence[str] = ()
    ) -> None:
        self.findings: list[Finding] = []
        self.incidents = IncidentTracker()
        self._loggers = loggers
        self._run_id = uuid.uuid4().hex
        self._folder = None if folder is None else ReportFolder(folder, self._run_id)
        self._console = Console()
        self._is_main_process = is_main_process
        self._responses = responses
        self._has_panel = True
        self._has_news = False
        self._stop_listening = log_to_terminal() if is_main_process else None

    def add(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keep and log a step's findings; the panel of a CRITICAL one follows with `publish`.

        Returns:
            Those that are new to their incident.
        """
        severity, began = self.incidents.severity, self.incidents.began
        news = self.incidents.add(findings)
        self.findings += news
        del self.findings[:-MOST_FINDINGS]
        if self._is_main_process and news:
            if began is None or self.incidents.began != began:
                self._console.end_incident()
                severity = 0
            for finding in news:
                self._log(finding, severity)
                severity = max(severity, int(finding.severity))
        return news

    def publish(self, recorders: Sequence[Recorder]) -> None:
        """Write a report and log a panel, if a CRITICAL finding was added since the last call.

        Called once the responses have acted.
        """
        if not self._is_main_process or not self._has_news:
            return
        self._has_news = False
        diagnosis, evidence = self._diagnose(recorders)
        report = self._write(diagnosis, evidence)
        if not self._has_panel:
            self._has_panel = True
            self._console.incident(diagnosis, evidence.findings, (), self._responses, report)
        if report is not None:
            self._loggers.report(report)

    def close(self) -> None:
        """Log what has not been logged yet."""
        self._console.end_incident()
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _log(self, finding: Finding, severity: int) -> None:
        """Log a finding.

        Args:
            finding: The finding.
            severity: Worst severity of its incident before it.
        """
        advice = advice_for(finding)
        self._loggers.finding(finding, advice, begins_incident=Severity.WARNING <= finding.severity > severity)
        self._has_news |= finding.severity is Severity.CRITICAL
        if finding.severity is Severity.CRITICAL and severity < Severity.CRITICAL:
            self._has_panel = False
        self._console.finding(finding, advice)

    def _diagnose(self, recorders: Sequence[Recorder]) -> tuple[Diagnosis, Evidence]:
        began = self.incidents.began
        findings = tuple(one for one in self.findings if began is None or one.step >= began)
        evidence = Evidence(
            step=findings[0].step,
            now=findings[-1].step,
            findings=findings,
            history=tuple(one.history() for one in recorders),
            first=tuple(one.first() for one in recorders),
        )
        return diagnose(evidence), evidence

    def _write(self, diagnosis: Diagnosis, evidence: Evidence) -> Report | None:
        if self._folder is None:
            return None
        try:
            now = datetime.now(timezone.utc).isoformat()
            content = ReportContent("run", self._run_id, now, evidence, diagnosis, tuple(self.findings))
            return write_report(self._folder.claim(), content)
        except Exception as error:  # a failed report must not cost the monitor, let alone the run
            kind = type(error).__name__
            log(logging.WARNING, f"gradexplode: the report could not be written: {kind}: {error}")
            return None

    def state_dict(self) -> dict[str, Any]:
        """Return the findings and the current incident in plain values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "incident": self.incidents.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.findings = [Finding.from_dict(one) for one in state["findings"]]
        if "incident" in state:  # version 0.1.0 had none
            self.incidents.load_state_dict(state["incident"])
