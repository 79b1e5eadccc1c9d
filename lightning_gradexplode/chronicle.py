"""The findings of a run: kept, told once an episode, and written into reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gradexplode.detect.bank import Episodes
from lightning_gradexplode.explain import Recorder, advice_for, write_report
from lightning_gradexplode.publish import Board
from lightning_gradexplode.publish.console import tell
from lightning_gradexplode.records import Finding, Severity

logger = logging.getLogger("lightning_gradexplode")

MOST_FINDINGS = 1000
"""So many findings are kept, the oldest ones being dropped."""


class Chronicle:
    """Keeps findings, and tells people of those that are new.

    Args:
        board: The loggers.
        folder: Where reports go; None for no reports.
        speaks: Whether this process is the one that tells and writes.
    """

    def __init__(self, board: Board, folder: Path | None, speaks: bool) -> None:
        self.findings: list[Finding] = []
        self._board = board
        self._folder = folder
        self._speaks = speaks
        self._episodes = Episodes()

    def add(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keep and tell a step's findings.

        Returns:
            Those that begin an episode or make one worse.
        """
        news = self._episodes.news(findings)
        self.findings += news
        del self.findings[:-MOST_FINDINGS]
        if self._speaks:
            for finding in news:
                advice = advice_for(finding)
                tell(finding, advice)
                self._board.finding(finding, advice)
        return news

    def report(self, news: Sequence[Finding], recorders: Sequence[Recorder]) -> None:
        """Write a report, if any of the new findings is critical; a full disk costs the report and not the run."""
        if self._folder is None or not self._speaks:
            return
        if not any(finding.severity is Severity.CRITICAL for finding in news):
            return
        try:
            report = write_report(self._folder, self.findings, recorders)
        except Exception as error:  # nothing in a report is worth the monitor, let alone the run
            kind = type(error).__name__
            logger.warning("gradexplode: the report could not be written to %s: %s: %s", self._folder, kind, error)
        else:
            self._board.report(report)

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
