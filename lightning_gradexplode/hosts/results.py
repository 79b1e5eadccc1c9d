"""What a monitor outside of Lightning has found in its run."""

from __future__ import annotations

from pathlib import Path

from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts.step_events import StepEvents
from lightning_gradexplode.records import Diagnosis, Finding, Severity, StepRecord


class RunResults:
    """Properties of a monitor that read the results of its run; none of them fails where there is no run."""

    _events: StepEvents | None = None

    @property
    def _run(self) -> TrainingRun | None:
        return None if self._events is None else self._events.run

    @property
    def findings(self) -> list[Finding]:
        """The findings of this run, oldest first; at most the latest 1000 are kept."""
        return [] if self._run is None else self._run.findings

    @property
    def exploded(self) -> bool:
        """Whether any finding is critical."""
        return any(finding.severity is Severity.CRITICAL for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed in this run and is off."""
        return self._events is not None and self._events.failed

    @property
    def last(self) -> StepRecord | None:
        """What was measured of the last optimizer step."""
        return None if self._run is None else self._run.last

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident of this run, None if there was none."""
        return None if self._run is None else self._run.diagnosis()

    @property
    def report_folder(self) -> Path | None:
        """The folder of the report of this run, None without a report."""
        return None if self._run is None else self._run.report_folder

    def report(self) -> Path | None:
        """Write a report of the run as it is now, and return its folder; None if no reports are written."""
        return None if self._run is None else self._run.report()
