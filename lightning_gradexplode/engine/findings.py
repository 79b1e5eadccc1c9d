"""The findings of a run: kept, and logged to console and loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradexplode.diagnose import advice_for
from lightning_gradexplode.engine.incidents import IncidentTracker
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console
from lightning_gradexplode.records import Finding, Severity

MAX_FINDINGS = 1000
"""Number of findings that are kept; the oldest are dropped."""


class FindingLog:
    """Keeps the findings of a run, and logs those that are new.

    Args:
        loggers: The loggers of the run.
        console: The console; None on processes that do not log.
        clips: Whether the run has a clip policy, so that none is advised.

    Attributes:
        findings: All that were new to their incident, oldest first; of more than `MAX_FINDINGS` the latest.
        incidents: The tracker of incidents.
        critical: New CRITICAL findings since the last `take_critical`.
    """

    def __init__(self, loggers: LoggerCollection, console: Console | None, clips: bool = False) -> None:
        self.findings: list[Finding] = []
        self.incidents = IncidentTracker()
        self._loggers = loggers
        self._console = console
        self._clips = clips
        self.critical: list[Finding] = []

    def add(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keep and log a step's findings.

        Returns:
            Those that are new to their incident.
        """
        severity, began = self.incidents.severity, self.incidents.began
        news = self.incidents.add(findings)
        self.findings += news
        del self.findings[:-MAX_FINDINGS]
        self.critical += [finding for finding in news if finding.severity is Severity.CRITICAL]
        if news and self._console is not None:
            if began is None or self.incidents.began != began:
                self._console.end_incident()
                severity = 0
            for finding in news:
                self._log(self._console, finding, severity)
                severity = max(severity, int(finding.severity))
        return news

    def take_critical(self) -> list[Finding]:
        """Remove and return the new CRITICAL findings since the last call."""
        critical, self.critical = self.critical, []
        return critical

    def _log(self, console: Console, finding: Finding, severity: int) -> None:
        """Log a finding.

        Args:
            console: The console.
            finding: The finding.
            severity: Worst severity of its incident before it.
        """
        advice = advice_for(finding, self._clips)
        self._loggers.finding(finding, advice, begins_incident=Severity.WARNING <= finding.severity > severity)
        console.finding(finding, advice)

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
