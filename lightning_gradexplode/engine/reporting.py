"""What is shown of an incident once the responses have acted: report, panel on the console, diagnosis in loggers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from lightning_gradexplode.engine.diagnoses import Diagnoses
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.engine.findings import FindingLog
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console, log
from lightning_gradexplode.records import (
    Attempt,
    Diagnosis,
    Evidence,
    History,
    Report,
    ReportContent,
    StepRecord,
)
from lightning_gradexplode.records.repeats import Repeats
from lightning_gradexplode.records.summary import headline
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.report import GradientHistory, ReportFolder, write_report, write_steps
from lightning_gradexplode.report.rows import places_at_fault

T = TypeVar("T")


class IncidentReporter:
    """Reports on the incidents of a run; on the main process only.

    Args:
        loop: The training loop.
        folder: Where reports are written; None for no reports.
        log: The findings.
        evidence: The evidence of incidents.
        diagnoses: Diagnoses them.
        loggers: The loggers of the run.
        console: The console; None on processes that do not log.
        responses: Names of the responses that act.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        folder: Path | None,
        log: FindingLog,
        evidence: EvidenceCollector,
        diagnoses: Diagnoses,
        loggers: LoggerCollection,
        console: Console | None,
        responses: Sequence[str],
    ) -> None:
        began = datetime.now(timezone.utc)
        self._run_name = loop.run_name
        self._run_id = loop.run_id or uuid.uuid4().hex
        self._folder = None if folder is None or console is None else ReportFolder(folder, self._run_id)
        self._log = log
        self._evidence = evidence
        self._diagnoses = diagnoses
        self._loggers = loggers
        self._console = console
        self._responses = responses
        self._shown: Diagnosis | None = None
        self._has_failed = False
        self._is_missing = False  # whether the last report lacks an incident
        self._shows: tuple[int, int] | None = None  # the onset and the last step of the incident in the last report
        self._repeats = Repeats()
        self._gradients = GradientHistory()
        if self._folder is not None:
            folder_ = self._folder
            self._write_or_log(lambda: folder_.announce(began))

    @property
    def is_stale(self) -> bool:
        """Whether the last report lacks an incident, or later steps and actions of the incident that it shows.

        Not once the recorded steps no longer reach back to the onset, which the report would lose.
        """
        if self._is_missing or self._shows is None:
            return self._is_missing
        onset, last = self._shows
        return last < self._last_step and all(int(one.step[0]) <= onset for one in self._histories)

    @property
    def _histories(self) -> list[History]:
        return [one for one in self._evidence.histories() if len(one.step)]

    @property
    def _last_step(self) -> int:
        return max((int(one.step[-1]) for one in self._histories), default=-1)

    @property
    def folder(self) -> Path | None:
        """The folder with this run's report, None if there is none yet."""
        return None if self._folder is None else self._folder.path

    def observe(self, record: StepRecord) -> None:
        """Keep what a report shows of a finished step besides its history."""
        self._gradients.add(record)

    def publish(self, attempts: Sequence[Attempt]) -> None:
        """Write a report, and show an incident, if a CRITICAL finding was added since the last call.

        Processes without a console and a folder only keep the diagnosis.

        Reports are written for the first three incidents of a sign, the 10th, the 100th and so on.

        Args:
            attempts: What the responses did.
        """
        if not self._log.take_critical():
            return
        evidence, diagnosis = self._evidence.evidence(attempts), self._diagnoses.current(attempts)
        first = headline(evidence.findings)
        self._is_missing = not self._repeats.is_due("" if first is None else first.sign)
        report = None if self._is_missing else self._write(evidence, diagnosis)
        if diagnosis is not None and diagnosis is not self._shown:
            self._shown = diagnosis
            self._diagnoses.shown(diagnosis)  # on all processes, so that they return the same one
            if self._console is not None:
                self._console.incident(diagnosis, evidence.findings, evidence.attempts, self._responses, report)
            self._loggers.diagnosis(diagnosis, evidence.now)
        if report is not None:
            self._loggers.report(report)

    def publish_cause(self, attempts: Sequence[Attempt]) -> None:
        """Publish the diagnosis of an incident that was shown already, if its cause is another one now.

        Args:
            attempts: What the responses did.
        """
        diagnosis = self._diagnoses.current(attempts)
        if diagnosis is None or self._shown is None or diagnosis is self._shown:
            return
        self._shown = diagnosis
        self._diagnoses.shown(diagnosis)
        if self._console is not None:
            self._console.explain(diagnosis)
        evidence = self._evidence.evidence(attempts)
        report = self._write(evidence, diagnosis)
        self._loggers.diagnosis(diagnosis, evidence.now)
        if report is not None:
            self._loggers.report(report)

    def explain(self) -> None:
        """Log the cause of an incident without a CRITICAL finding in one line, if it is known."""
        diagnosis = self._diagnoses.current()
        if self._console is not None and diagnosis is not None and diagnosis.causes[0].kind != "unknown":
            self._console.explain(diagnosis)

    def write(self, attempts: Sequence[Attempt]) -> None:
        """Write a report of the run as it is now.

        Args:
            attempts: What the responses did.
        """
        self._write_or_log(lambda: self._write(self._evidence.evidence(attempts), self._diagnoses.current(attempts)))

    def _write(self, evidence: Evidence, diagnosis: Diagnosis | None) -> Report | None:
        self._is_missing, folder = False, self._folder
        if folder is None:
            return None
        self._shows = None if diagnosis is None else (evidence.step, self._last_step)
        return self._write_or_log(lambda: write_report(folder.claim(), self._content(evidence, diagnosis)))

    def write_steps(self, attempts: Sequence[Attempt]) -> None:
        """Write the recorded steps of a run that ends abnormally.

        Args:
            attempts: What the responses did.
        """
        evidence, diagnosis, folder = self._evidence.evidence(attempts), self._diagnoses.current(attempts), self._folder
        if folder is not None:
            self._write_or_log(lambda: write_steps(folder.claim(), self._content(evidence, diagnosis)))

    def _content(self, evidence: Evidence, diagnosis: Diagnosis | None) -> ReportContent:
        where = self._gradients.shown_of(places_at_fault(diagnosis, evidence))
        return ReportContent(
            run_name=self._run_name,
            run_id=self._run_id,
            written=datetime.now(timezone.utc).isoformat(),
            evidence=replace(evidence, history=self._evidence.histories_from_onset()),
            diagnosis=diagnosis,
            findings=tuple(self._log.findings),
            gradients=self._gradients.of(where),
            gradients_of=where or "",
            module_gradients=self._gradients.modules,
        )

    def _write_or_log(self, write: Callable[[], T]) -> T | None:
        """Write a file; a failure is logged once, and has no other effect."""
        try:
            return write()
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                log(logging.WARNING, f"gradexplode: the report could not be written: {describe(error)}")
            return None
