"""The results of a run, while it goes on and after it: last step, findings, diagnosis and report."""

from __future__ import annotations

from pathlib import Path

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.records import Diagnosis, Finding, StepRecord


class CurrentResults:
    """The results of one run, as they are now: steps that the detectors hold are evaluated before one is read.

    Args:
        components: The components of the run.
        after: Holds the last step.
    """

    def __init__(self, components: Components, after: AfterUpdate) -> None:
        self._components = components
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
        return self._components.log.findings

    @property
    def report_folder(self) -> Path | None:
        """The folder with the report of this run, None if there is none yet."""
        return self._components.reporter.folder

    def report(self) -> Path | None:
        """Write a report of the run as it is now, and return its folder; None where no reports are written."""
        diagnosis = self.diagnosis()
        self._components.reporter.write(
            self._components.evidence.evidence(self._components.responses.attempts), diagnosis
        )
        return self._components.reporter.folder

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident, None if there was none."""
        self._after.evaluate_held()
        return self._components.diagnoses.current(self._components.responses.attempts)
