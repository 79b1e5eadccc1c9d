"""The results of a run, which all classes by which users add the monitor have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.records import Diagnosis, Finding, Severity, StepRecord

if TYPE_CHECKING:
    from lightning_gradexplode.hosts.step_events import StepEvents


@dataclass(frozen=True, slots=True)
class EndedRun:
    """The results of a run that has ended, or has not begun. They refer neither to the module nor to the training loop.

    Args:
        findings: The findings, oldest first.
        last: The record of the last step.
        failed: Whether the monitor has failed.
        incident: The diagnosis of the latest incident.
        report_folder: The folder of the report.
    """

    findings: list[Finding] = field(default_factory=list)
    last: StepRecord | None = None
    failed: bool = False
    incident: Diagnosis | None = None
    report_folder: Path | None = None

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident."""
        return self.incident

    def report(self) -> Path | None:
        """Return the folder of the report, which is not written again."""
        return self.report_folder


class RunResults:
    """Properties that read the results of a run in progress, or of the latest one that has ended."""

    @property
    def _results(self) -> TrainingRun | EndedRun:
        raise NotImplementedError

    @property
    def findings(self) -> list[Finding]:
        """The findings of this run, oldest first; at most the latest 1000 are kept."""
        return self._results.findings

    @property
    def exploded(self) -> bool:
        """Whether any finding is critical."""
        return any(finding.severity is Severity.CRITICAL for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed in this run and is off."""
        return self._results.failed

    @property
    def last(self) -> StepRecord | None:
        """The record of the last optimizer step, None before the first one."""
        return self._results.last

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident of this run, None if there was none.

        It contains what happened, where and since when, the likely causes with evidence, and what to do.
        """
        return self._results.diagnosis()

    @property
    def report_folder(self) -> Path | None:
        """The folder of the report of this run, None without a report."""
        return self._results.report_folder

    def report(self) -> Path | None:
        """Write a report of the run in progress as it is now, also of a healthy one.

        Returns:
            The folder; of a run that has ended that of its last report; None if ``report`` is False.
        """
        return self._results.report()

    def _repr_html_(self) -> str:
        diagnosis = self.diagnosis()
        if diagnosis is not None:
            return diagnosis._repr_html_()
        return "<p>No incident so far.</p>" if self.last is None else self.last._repr_html_()


class StepEventsResults(RunResults):
    """The results of a monitor in a training loop without a Trainer of Lightning."""

    _events: StepEvents | None = None

    @property
    def _run(self) -> TrainingRun | None:
        return None if self._events is None else self._events.run

    @property
    def _results(self) -> TrainingRun | EndedRun:
        return self._run or EndedRun()

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed in this run and is off."""
        return self._events is not None and self._events.failed
