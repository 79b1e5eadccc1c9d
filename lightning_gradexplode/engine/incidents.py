"""The findings of a run: kept, told once an episode, and written into reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gradexplode.detect.detector_set import Episodes
from lightning_gradexplode.diagnose import advice_for
from lightning_gradexplode.diagnose.diagnosis import diagnose
from lightning_gradexplode.engine.incident import Incident
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Panel, listen, say, tell, tell_panel, tell_rest
from lightning_gradexplode.records import Finding, Report, Severity
from lightning_gradexplode.report import Recorder, write_report

MOST_FINDINGS = 1000
"""So many findings are kept, the oldest ones being dropped."""


class IncidentLog:
    """Keeps findings, and tells people of those that are new.

    Args:
        board: The loggers.
        folder: Where reports go; None for no reports.
        speaks: Whether this process is the one that tells and writes.
        responses: What responds to critical findings, by name.
    """

    def __init__(
        self, board: LoggerCollection, folder: Path | None, speaks: bool, responses: Sequence[str] = ()
    ) -> None:
        self.findings: list[Finding] = []
        self._board = board
        self._folder = folder
        self._speaks = speaks
        self._responses = responses
        self._episodes = Episodes()
        self._incident = Incident()
        self._untold: Finding | None = None
        self._rest: dict[str, int] = {}
        self._stop_listening = listen() if speaks else None

    def add(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keep and tell a step's findings.

        Returns:
            Those that begin an episode or make one worse.
        """
        news = self._episodes.news(findings)
        self.findings += news
        del self.findings[:-MOST_FINDINGS]
        if self._speaks:
            self._tell(findings, news)
        return news

    def report(self, news: Sequence[Finding], recorders: Sequence[Recorder]) -> None:
        """Write a report, if any of the new findings is critical, and tell of an explosion that has just begun.

        A full disk costs the report and not the run.
        """
        if not self._speaks or not any(finding.severity is Severity.CRITICAL for finding in news):
            return
        report = self._write(recorders)
        if self._untold is not None:
            critical, self._untold = self._untold, None
            tell_panel(self._panel(critical, recorders, report))
        if report is not None:
            self._board.report(report)

    def close(self) -> None:
        """End a fit: tell what has not been told."""
        self._tell_rest()
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _tell_rest(self) -> None:
        """Tell, in one line, what else was seen of the last explosion."""
        if self._rest:
            tell_rest(self._rest, self._incident.began)
            self._rest = {}

    def _tell(self, findings: Sequence[Finding], news: Sequence[Finding]) -> None:
        """Tell loggers of all that is new, and the console of it in as few lines as an explosion needs."""
        goes_on = bool(findings) and self._incident.is_critical(findings[0].step)
        if not goes_on and news:
            self._tell_rest()
        begins = {id(finding): self._incident.note(finding) for finding in findings}
        for finding in news:
            advice = advice_for(finding)
            self._board.finding(finding, advice, begins[id(finding)])
            if finding.severity >= Severity.WARNING and (goes_on or self._untold is not None):
                self._rest.setdefault(finding.sign, finding.step)
            elif finding.severity < Severity.CRITICAL:
                tell(finding, advice)
            else:
                self._untold = finding

    def _write(self, recorders: Sequence[Recorder]) -> Report | None:
        if self._folder is None:
            return None
        try:
            return write_report(self._folder, self.findings, recorders)
        except Exception as error:  # nothing in a report is worth the monitor, let alone the run
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
        """Give the findings and the open episodes in plain values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "episodes": self._episodes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.findings = [Finding.from_dict(plain) for plain in state["findings"]]
        self._episodes.load_state_dict(state["episodes"])
