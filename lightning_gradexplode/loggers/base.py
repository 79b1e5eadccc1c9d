"""The base class of the adapters that write scalars, histograms, findings and reports to one logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report


class LoggerAdapter:
    """Writes to one logger. This base class works with any logger that has ``log_metrics``, and writes scalars only.

    A subclass overrides `accepts`, and the methods for the further features of its logger. Names of scalars and
    histograms begin with ``gradexplode/``.

    Args:
        logger: The Lightning logger, or an object with ``log_metrics(metrics=, step=)``.
    """

    takes_histograms = False
    """Whether `histograms` is called."""

    package = ""
    """The package that the class of a logger's ``experiment`` is from, which `accepts` compares; empty for any."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def experiment(self) -> Any:
        """The logger's ``experiment``, or the logger itself if it has none."""
        return getattr(self.logger, "experiment", self.logger)

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Return whether this adapter is the one for a logger's ``experiment``.

        It must not import the logger's package, which may not be installed.

        Args:
            experiment: The logger's ``experiment``, or the logger itself if it has none.
        """
        return not cls.package or type(experiment).__module__.partition(".")[0] == cls.package

    def started(self) -> None:
        """Prepare the logger. Called once, before the first write."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at a step.

        Args:
            values: Scalars by name; they may be NaN or infinite.
            step: The step, as in the trainer's own logs.
        """
        self.logger.log_metrics(metrics=dict(values), step=step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Log histograms at a step. Called only if `takes_histograms` is True.

        Args:
            histograms: Histograms by name, such as ``gradexplode/gradient/<parameter>``.
            step: The step.
        """

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Record a finding.

        Args:
            finding: The finding.
            advice: What to do about it.
        """

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Send an alert for a finding that begins an incident or increases its severity.

        Args:
            finding: A finding of at least the monitor's ``alert_level``.
            advice: The first cause and the first remedy of the diagnosis, if there is one; else what to do in general.
        """

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Record the diagnosis of an incident; a later one replaces it.

        Args:
            diagnosis: The diagnosis.
            step: The step at which it is logged.
        """

    def report(self, report: Report) -> None:
        """Record a report whose files were written."""
