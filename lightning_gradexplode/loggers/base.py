"""What a publisher is: the way of scalars, histograms and findings into one logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.records import Finding, Histogram, Report


class LoggerAdapter:
    """Writes to one Lightning logger; this base class serves any of them, with scalars only.

    A subclass for a logger that can do more overrides `accepts`, and what more it can do.

    Args:
        logger: The Lightning logger.
    """

    takes_histograms = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether this publisher knows a logger's ``experiment``, without importing what may not be installed."""
        return True

    def started(self) -> None:
        """Prepare the logger; called once, before the first write."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars at a step."""
        self.logger.log_metrics(dict(values), step=step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms at a step; only called where `takes_histograms` is set."""

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Tell of a finding, and what to do about it."""

    def report(self, report: Report) -> None:
        """Show a report that was written."""
