"""One fit under watch: from what Lightning's hooks see to records, findings, responses and logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode import _lightning
from lightning_gradexplode.detect.bank import Episodes
from lightning_gradexplode.explain import advice_for
from lightning_gradexplode.explain.recorder import write_report
from lightning_gradexplode.measure import step as measure
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.publish import Board
from lightning_gradexplode.publish.console import tell
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.respond import Run
from lightning_gradexplode.respond.apply import clip_gradients, drop_gradients
from lightning_gradexplode.settings import Settings
from lightning_gradexplode.watch import OptimizerWatch

logger = logging.getLogger("lightning_gradexplode")

ALERT_STEPS = 10
"""For so many steps after a finding, everything is measured and logged at each."""

MOST_FINDINGS = 1000
"""So many findings are kept, the oldest ones being dropped."""


@dataclass(slots=True, eq=False)
class StepInFlight:
    """An optimizer step between its gradients and its record's publication."""

    watch: OptimizerWatch
    parameters: ParameterSet
    record: StepRecord
    scale: float
    scalars_due: bool
    histograms_due: bool
    weights_before: WeightCopy | None = None
    held_back: bool = False
    evaluations: int = 1


class Session:
    """Watches one fit; `lightning_gradexplode.monitor` hands Lightning's hooks on to it.

    Args:
        settings: The monitor's arguments.
        trainer: Lightning's trainer.
        module: The LightningModule.
        state: What an earlier `state_dict` gave, to go on from there.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: _lightning.Trainer,
        module: _lightning.LightningModule,
        state: Mapping[str, Any],
    ) -> None:
        self.findings: list[Finding] = []
        self.last: StepRecord | None = None
        self._settings = settings
        self._trainer = trainer
        self._module = module
        self._automatic = _lightning.is_automatic(trainer)
        self._schedule = settings.schedule(_lightning.log_interval(trainer))
        self._board = Board(trainer.loggers if trainer.is_global_zero else [])
        self._folder = _report_folder(settings.report, trainer)
        self._clipping_before = (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self._clips_itself = not self._automatic or _lightning.overrides_clipping(trainer)
        self._episodes = Episodes()
        self._alert_until = -1
        self._skipped = 0
        self._batch_idx = 0
        self._losses: list[Tensor] = []
        self._reading: measure.GradientReading | None = None
        self._open: StepInFlight | None = None
        self._closed: list[StepInFlight] = []
        self._watches = [
            OptimizerWatch(index, optimizer, settings.detectors, settings.clip)
            for index, optimizer in enumerate(trainer.optimizers)
        ]
        self._load(state)

    # What Lightning's hooks call, in the order of a batch.

    def batch_starts(self, batch_idx: int) -> None:
        """Begin a batch."""
        self._batch_idx = batch_idx

    def backward_starts(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch; in manual optimization it is only known what training_step returns."""
        if self._automatic:
            self._losses.append(loss.detach())

    def backward_ended(self) -> None:
        """Measure the gradients, if those of the whole accumulation window are there and their owner is known."""
        if self._automatic and self._open is None and _lightning.closes_window(self._trainer, self._batch_idx):
            watch = self._watches[0]
            scale, _ = _lightning.loss_scale(self._trainer)
            self._reading = measure.GradientReading.take(self._parameters(watch), scale or 1.0)

    def optimizer_will_step(self, optimizer: Optimizer) -> None:
        """Judge the gradients that an optimizer is about to be handed, and act on what is found."""
        if self._open is not None and self._open.watch.optimizer is optimizer:
            self._open.evaluations += 1  # a line search (LBFGS) asks again; the step's own gradients were the first
            self._clip(self._open)
            return
        self._close_open()
        self._begin(self._watch_of(optimizer))

    def optimizer_steps(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arrange, right before an optimizer's step, that an update which is to be held back will not happen.

        Args:
            optimizer: The optimizer.
            args: What its ``step`` was called with, the optimizer itself first.
            kwargs: The same by name.

        Returns:
            What to call ``step`` with instead; None to leave it.
        """
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._hold_back(optimizer)
            return None

        # With a closure, the forward and backward pass and all of our judging happen inside the step.
        def judged() -> Any:
            result = closure()
            self._hold_back(optimizer)
            return result

        return args[:1], {**kwargs, "closure": judged}

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Measure, right after an optimizer's step, what it has changed."""
        if self._open is not None and self._open.watch.optimizer is optimizer:
            self._measure_after(self._open)

    def batch_ends(self, outputs: Any) -> None:
        """Publish the steps of a batch."""
        self._close_open()
        closed, self._closed = self._closed, []
        loss = None if self._automatic else _lightning.returned_loss(outputs)
        for flight in closed:
            if flight is closed[-1] and loss is not None:
                flight.record = replace(flight.record, loss=float(loss))
            self._finish(flight)

    def publish_rest(self) -> None:
        """Publish what an exception has cut short."""
        self._close_open()
        closed, self._closed = self._closed, []
        for flight in closed:
            self._publish(flight)

    def close(self) -> None:
        """Leave the trainer as it was found."""
        if self._settings.clip is not None:
            self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm = self._clipping_before

    def state_dict(self) -> dict[str, Any]:
        """Give what later decisions depend on, in plain values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "episodes": self._episodes.state_dict(),
            "alert_until": self._alert_until,
            "skipped_steps": self._skipped,
            "optimizers": [watch.state_dict() for watch in self._watches],
            "responses": [response.state_dict() for response in self._settings.responses],
        }

    # The way of one optimizer step.

    def _begin(self, watch: OptimizerWatch) -> None:
        parameters = self._parameters(watch)
        scale, adapts = _lightning.loss_scale(self._trainer)
        in_memory = scale if scale is not None and _lightning.unscales_itself(watch.optimizer) else None
        reading, self._reading = self._reading, None
        unscaled_since = int(scale is not None and in_memory is None)
        if reading is None or not self._automatic or not reading.holds(parameters, unscaled_since):
            reading = measure.GradientReading.take(parameters, in_memory or 1.0)
        losses, self._losses = self._losses, []
        if all(gradient is None for gradient in reading.gradients):
            return
        step = _lightning.logging_step(self._trainer)
        record = StepRecord(
            step=step,
            batch_idx=self._batch_idx,
            optimizer=watch.index,
            parameters=parameters.names,
            loss=self._window_loss(losses, scale),
            loss_scale=scale,
            scale_adapts=adapts,
            skipped_steps=self._skipped,
        )
        alert = step <= self._alert_until
        flight = StepInFlight(
            watch,
            parameters,
            measure.with_gradients(record, reading.norms),
            in_memory or 1.0,
            self._schedule.scalars_due(step, alert),
            self._schedule.histograms_due(step, alert),
        )
        self._open = flight
        self._judge(flight)

    def _judge(self, flight: StepInFlight) -> None:
        watch = flight.watch
        detailed = flight.scalars_due
        if detailed:
            self._measure_details(flight)
        elif self._clip_algorithm(watch) == "value":
            flight.record = measure.with_maxima(flight.record, flight.parameters, flight.scale)
        findings = watch.bank.begin(flight.record)
        news = self._note(flight, findings)
        if flight.scalars_due and not detailed:
            self._measure_details(flight)
        if flight.histograms_due:
            gradients = flight.parameters.gradients
            flight.record = measure.with_histograms(
                flight.record, "gradient", flight.parameters, gradients, flight.scale
            )
        self._set_clip(flight)
        watch.recorder.add(flight.record)
        self._report(news)
        self._respond(flight, findings, before_update=True)
        if flight.scalars_due and not flight.held_back:
            flight.weights_before = WeightCopy(flight.parameters.tensors)

    def _measure_details(self, flight: StepInFlight) -> None:
        record = measure.with_maxima(flight.record, flight.parameters, flight.scale)
        flight.record = measure.with_shares_above_one(record, flight.parameters, flight.scale)

    def _measure_after(self, flight: StepInFlight) -> None:
        first = flight.watch.steps == 0
        flight.watch.steps += 1
        if flight.held_back:
            return
        if flight.scalars_due and flight.evaluations == 1:
            norms = measure_norms(flight.parameters.gradients) if self._is_clipped(flight) else None
            flight.record = (
                replace(flight.record, grad_norm_clipped=flight.record.grad_norm)
                if norms is None
                else measure.with_clipped_norm(flight.record, norms)
            )
        if flight.weights_before is not None:
            copy, flight.weights_before = flight.weights_before, None
            flight.record = measure.with_weight_change(flight.record, flight.parameters, copy, flight.histograms_due)
        elif first:
            flight.record = measure.with_weights(flight.record, measure_norms(flight.parameters.tensors))

    def _finish(self, flight: StepInFlight) -> None:
        findings = flight.watch.bank.proceed(flight.record)
        news = self._note(flight, findings)
        self._report(news)
        self._publish(flight)
        self._respond(flight, findings, before_update=False)

    def _publish(self, flight: StepInFlight) -> None:
        record = self.last = flight.record
        metrics = {"gradexplode/grad_norm": record.grad_norm, "gradexplode/update_ratio": record.update_ratio}
        known = {name: value for name, value in metrics.items() if value is not None}
        _lightning.publish_callback_metrics(self._trainer, {**known, "gradexplode/severity": float(record.severity)})
        if flight.scalars_due:
            self._board.record(record, flight.parameters.shown, self._settings.per_parameter)

    # Findings, and what is done about them.

    def _note(self, flight: StepInFlight, findings: Sequence[Finding]) -> list[Finding]:
        """Remember and tell a step's findings.

        Returns:
            Those that are new.
        """
        if not findings:
            return []
        record = flight.record
        worst = max(int(finding.severity) for finding in findings)
        flight.record = replace(record, severity=max(record.severity, worst))
        news = self._episodes.news(findings)
        if not news:
            return news
        self.findings += news
        del self.findings[:-MOST_FINDINGS]
        if any(finding.severity >= Severity.WARNING for finding in news):
            self._alert_until = record.step + ALERT_STEPS
            flight.scalars_due = self._schedule.scalars_due(record.step, alert=True)
            flight.histograms_due = self._schedule.histograms_due(record.step, alert=True)
        if self._trainer.is_global_zero:
            for finding in news:
                tell(finding, advice_for(finding))
            self._board.findings(news)
        return news

    def _report(self, news: Sequence[Finding]) -> None:
        if self._folder is not None and any(finding.severity is Severity.CRITICAL for finding in news):
            write_report(self._folder, self.findings, [watch.recorder for watch in self._watches])

    def _respond(self, flight: StepInFlight, findings: Sequence[Finding], before_update: bool) -> None:
        critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
        if not critical:
            return
        run = Run(self._trainer, self._module, before_update)
        for response in self._settings.responses:
            response.respond(critical, run)
        if run.update_is_held_back:
            flight.held_back = True
            self._skipped += 1
            flight.record = replace(flight.record, skipped_steps=self._skipped)

    def _hold_back(self, optimizer: Optimizer) -> None:
        if self._open is not None and self._open.held_back and self._open.watch.optimizer is optimizer:
            drop_gradients(optimizer)

    # Clipping.

    def _clip_algorithm(self, watch: OptimizerWatch) -> str:
        return watch.policy.algorithm if watch.policy is not None else _lightning.clipping(self._trainer)[1]

    def _set_clip(self, flight: StepInFlight) -> None:
        policy = flight.watch.policy
        if policy is None:
            value, algorithm = _lightning.clipping(self._trainer)
        else:
            value, algorithm = policy.threshold(flight.record), policy.algorithm
            if not self._clips_itself:
                _lightning.set_clipping(self._trainer, value, algorithm)
        if value is None:
            return
        size = flight.record.grad_norm if algorithm == "norm" else flight.record.grad_max
        flight.record = replace(
            flight.record, clip_val=value, clip_algorithm=algorithm, clip_rate=flight.watch.clip_rate(value, size)
        )
        self._clip(flight)

    def _clip(self, flight: StepInFlight) -> None:
        """Clip, where the trainer does not do it for us."""
        record = flight.record
        if self._clips_itself and flight.watch.policy is not None and record.clip_val and record.clip_algorithm:
            gradients = flight.parameters.gradients
            norm = record.grad_norm if flight.evaluations == 1 else measure_norms(gradients, flight.scale).total
            assert norm is not None
            clip_gradients(gradients, record.clip_val, record.clip_algorithm, norm, flight.scale)

    def _is_clipped(self, flight: StepInFlight) -> bool:
        return flight.record.clip_val is not None or _lightning.overrides_clipping(self._trainer)

    # Small things.

    def _parameters(self, watch: OptimizerWatch) -> ParameterSet:
        return watch.parameters(self._module, self._settings.include, self._settings.exclude)

    def _watch_of(self, optimizer: Optimizer) -> OptimizerWatch:
        raw = getattr(optimizer, "optimizer", optimizer)
        return next(watch for watch in self._watches if watch.optimizer is raw)

    def _window_loss(self, losses: Sequence[Tensor], scale: float | None) -> float | None:
        """Give the mean of the micro-batches' losses, which Lightning divides by their number and AMP scales."""
        if not losses:
            return None
        total = float(losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum())
        return total / (scale or 1.0) * self._trainer.accumulate_grad_batches / len(losses)

    def _close_open(self) -> None:
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None

    def _load(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self.findings = [Finding.from_dict(plain) for plain in state["findings"]]
        self._episodes.load_state_dict(state["episodes"])
        self._alert_until = state["alert_until"]
        self._skipped = state["skipped_steps"]
        for watch, plain in zip(self._watches, state["optimizers"], strict=False):
            watch.load_state_dict(plain)
        for response, plain in zip(self._settings.responses, state["responses"], strict=False):
            response.load_state_dict(plain)


def _report_folder(report: Path | bool, trainer: _lightning.Trainer) -> Path | None:
    """Give the folder for reports, None on other processes than the main one or if none are wanted."""
    folder = report if isinstance(report, Path) else _lightning.log_directory(trainer) / "gradexplode"
    return folder if report is not False and trainer.is_global_zero else None
