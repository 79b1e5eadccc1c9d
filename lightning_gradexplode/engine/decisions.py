"""One optimizer step under judgement: what is found in it, what is done about that, and what is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.clipping import GradientClipper
from lightning_gradexplode.engine.incidents import IncidentLog
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.engine.schedule import LoggingSchedule
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Finding, Severity, StepRecord


class StepDecisions:
    """Asks the detectors about each step, and hands their findings on to those who tell, clip, respond and publish.

    Args:
        trainer: Lightning's trainer.
        settings: The monitor's arguments.
        watches: The optimizers.
        clipper: Who clips.
        steering: Who responds.
        timetable: What is due when.
    """

    def __init__(
        self,
        trainer: _lightning.Trainer,
        settings: Arguments,
        watches: Sequence[OptimizerState],
        clipper: GradientClipper,
        steering: ResponseRunner,
        timetable: LoggingSchedule,
    ) -> None:
        self.last: StepRecord | None = None
        self._trainer = trainer
        self._settings = settings
        self._watches = watches
        self._clipper = clipper
        self._steering = steering
        self._timetable = timetable
        self._board = LoggerCollection(trainer.loggers if trainer.is_global_zero else [], len(trainer.optimizers) > 1)
        self.chronicle = IncidentLog(
            self._board,
            _lightning.report_folder(trainer, settings.report),
            trainer.is_global_zero,
            [type(one).__name__ for one in settings.responses if not one.only_warns],
        )

    def before_update(self, flight: Step) -> None:
        """Judge a step by its loss and its gradients, and do what is to be done about it before its update."""
        findings = self._find(flight)
        self._steering.respond(flight, findings, before_update=True)
        if not flight.held_back:
            record = self._clipper.clip(flight.watch, flight.parameters, flight.record, flight.scale, known=True)
            flight.record = record
            flight.copy_weights(self._settings.update_sample)

    def after_batch(self, flight: Step) -> None:
        """Judge a step by what it has changed, and publish it."""
        findings = flight.watch.bank.proceed(flight.record, flight.came_late)
        news = self._note(flight, findings)
        self.chronicle.report(news, self._recorders)
        self.publish(flight)
        self._steering.respond(flight, findings, before_update=False)

    def late(self, flight: Step) -> None:
        """Judge, in one go, a step that was not judged before its update, for nobody had waited for its numbers."""
        may_be_clipped = self._clipper.changes(flight.record)
        flight.watch.changes_gradients |= not flight.is_intact and not may_be_clipped
        findings = self._find(flight)
        if not may_be_clipped:
            flight.note_unclipped()
        self._steering.respond(flight, findings, before_update=False)
        self.after_batch(flight)

    def publish(self, flight: Step) -> None:
        """Log a step, if that is due, and show its record."""
        record = self.last = flight.record
        metrics = {"gradexplode/grad_norm": record.grad_norm, "gradexplode/update_ratio": record.update_ratio}
        known = {name: value for name, value in metrics.items() if value is not None}
        _lightning.publish_callback_metrics(self._trainer, {**known, "gradexplode/severity": float(record.severity)})
        if flight.scalars_due:
            record = self._steering.logged(record)
            self._board.record(record, flight.parameters.shown, self._settings.per_parameter)

    def _find(self, flight: Step) -> Sequence[Finding]:
        """Measure what else a step needs, and tell what its loss and its gradients show."""
        watch = flight.watch
        clips_by_value = self._clipper.algorithm(watch) == "value"
        if watch.bank.wants_start:
            flight.measure_start()
        flight.measure_gradients(clips_by_value)
        findings = watch.bank.begin(flight.record)
        news = self._note(flight, findings)
        flight.measure_gradients(clips_by_value)  # after a finding everything is due
        flight.measure_gradient_histograms()
        rated = self._clipper.rated if watch.policy is None else self._clipper.set
        flight.record = rated(watch, flight.record)
        watch.recorder.add(flight.record)
        self.chronicle.report(news, self._recorders)
        return findings

    def _note(self, flight: Step, findings: Sequence[Finding]) -> list[Finding]:
        """Tell a step's findings, and give those that are new."""
        if not findings:
            return []
        flight.note(findings)
        news = self.chronicle.add(findings)
        if any(finding.severity >= Severity.WARNING for finding in news):
            step = flight.record.step
            self._timetable.alarm(step)
            flight.scalars_due = self._timetable.scalars_due(step)
            flight.histograms_due = self._timetable.histograms_due(step)
        return news

    @property
    def _recorders(self) -> list[Any]:
        return [watch.recorder for watch in self._watches]
