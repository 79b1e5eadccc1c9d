"""The findings of a run: kept, logged to console and loggers, and written into reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gradexplode.diagnose import advice_for
from lightning_gradexplode.diagnose.diagnosis import diagnose
from lightning_gradexplode.engine.incidents import IncidentTracker
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Panel, listen, say, tell, tell_panel, tell_rest
from lightning_gradexplode.records import Finding, Report, Severity
from lightning_gradexplode.report import Recorder, write_report

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
        self._folder = folder
        self._is_main_process = is_main_process
        self._responses = responses
        self._unpublished: Finding | None = None
        self._has_news = False
        self._further_signs: dict[str, int] = {}
        self._stop_listening = listen() if is_main_process else None

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
                self._log_further_signs()
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
        report = self._write(recorders)
        if self._unpublished is not None:
            critical, self._unpublished = self._unpublished, None
            tell_panel(self._panel(critical, recorders, report))
        if report is not None:
            self._loggers.report(report)

    def close(self) -> None:
        """Log what has not been logged yet."""
        self._log_further_signs()
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _log_further_signs(self) -> None:
        """Log, in one line, the other signs of an incident."""
        if self._further_signs:
            tell_rest(self._further_signs, min(self._further_signs.values()))
            self._further_signs = {}

    def _log(self, finding: Finding, severity: int) -> None:
        """Log a finding.

        Args:
            finding: The finding.
            severity: Worst severity of its incident before it.
        """
        advice = advice_for(finding)
        self._loggers.finding(finding, advice, begins_incident=Severity.WARNING <= finding.severity > severity)
        self._has_news |= finding.severity is Severity.CRITICAL
        if finding.severity >= Severity.WARNING and severity >= Severity.CRITICAL:
            self._further_signs.setdefault(finding.sign, finding.step)
        elif finding.severity < Severity.CRITICAL:
            tell(finding, advice)
        else:
            self._unpublished = finding

    def _write(self, recorders: Sequence[Recorder]) -> Report | None:
        if self._folder is None:
            return None
        try:
            return write_report(self._folder, self.findings, recorders)
        except Exception as error:  # a failed report must not cost the monitor, let alone the run
            kind = type(error).__name__
            say(logging.WARNING, f"gradexplode: the report could not be written to {self._folder}: {kind}: {error}")
            return None

    def _panel(self, critical: Finding, recorders: Sequence[Recorder], report: Report | None) -> Panel:
        responses = ", ".join(self._responses)
        diagnosis = diagnose(self.findings, recorders)
        sentences = [
            *diagnosis.sentences,
            ("Done", f"on_explosion responds: {responses}" if responses else "nothing but this (on_explosion='warn')"),
            ("Next", " ".join(diagnosis.remedies[:2])),
        ]
        if report is not None:
            sentences.append(("Report", str(report.page or report.folder)))
        return Panel(f"gradexplode CRITICAL at step {critical.step}: {critical.sign}", tuple(sentences))

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
