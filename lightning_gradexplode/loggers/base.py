"""The base class of what writes scalars, histograms, findings and reports to one logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report


class LoggerAdapter:
    """Writes to one logger. This base class serves any logger with ``log_metrics``, with scalars only.

    A subclass overrides `accepts`, and the methods for what else its logger can show.

    Args:
        logger: The Lightning logger.
    """

    takes_histograms = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def experiment(self) -> Any:
        """What the logger writes to: its ``experiment``, or the logger itself where it is no Lightning logger."""
        return getattr(self.logger, "experiment", self.logger)

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Return whether this adapter serves a logger's ``experiment``, without importing what may not be installed."""
        return True

    def started(self) -> None:
        """Prepare the logger; called once, before the first write."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at a step."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Log histograms at a step; only called where `takes_histograms` is set."""

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Record a finding, and what to do about it."""

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Notify people of a finding of the alert level that begins an incident or makes one worse."""

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Show the diagnosis of an incident; a later one replaces it."""

    def report(self, report: Report) -> None:
        """Show a report that was written."""
