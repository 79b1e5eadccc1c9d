"""The results of a run, while it goes on and after it: last step, findings, diagnosis and report."""

from __future__ import annotations

from pathlib import Path

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.records import Diagnosis, Finding, StepRecord


class CurrentResults:
    """The results of one run, as they are now: steps that the detectors hold are evaluated before one is read.

    Args:
        run: The components of the run.
        after: Holds the last step.
    """

    def __init__(self, run: Components, after: AfterUpdate) -> None:
        self._run = run
        self._after = after

    @property
    def last(self) -> StepRecord | None:
        """The record of the last step that is finished."""
        self._after.evaluate_held()
        return self._after.last

    @property
    def findings(self) -> list[Finding]:
        """What was found, oldest first."""
        self._after.evaluate_held()
        return self._run.log.findings

    @property
    def report_folder(self) -> Path | None:
        """The folder with the report of this run, None if there is none yet."""
        return self._run.reporter.folder

    def report(self) -> Path | None:
        """Write a report of the run as it is now, and return its folder; None where no reports are written."""
        diagnosis = self.diagnosis()
        self._run.reporter.write(self._run.evidence.evidence(self._run.responses.attempts), diagnosis)
        return self._run.reporter.folder

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident, None if there was none."""
        self._after.evaluate_held()
        return self._run.diagnoses.current(self._run.responses.attempts)
