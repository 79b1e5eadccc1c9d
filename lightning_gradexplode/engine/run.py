"""One fit under watch: from what Lightning's hooks see to records, findings, responses and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.accumulation import AccumulatedReading, AccumulationWindow
from lightning_gradexplode.engine.clipping import GradientClipper
from lightning_gradexplode.engine.decisions import StepDecisions
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.incidents import IncidentLog
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.engine.schedule import LoggingSchedule
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.measure.module_gradients import ModuleGradientProbe
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.measure.step import with_gradient_norms
from lightning_gradexplode.records import ModuleGradients, StepRecord


class TrainingRun:
    """Watches one fit; `lightning_gradexplode.callback` hands Lightning's hooks on to it.

    Args:
        settings: The monitor's arguments.
        trainer: Lightning's trainer.
        module: The LightningModule.
        callback: The monitor.
        state: What an earlier `state_dict` gave, to go on from there.
    """

    def __init__(
        self,
        settings: Arguments,
        trainer: _lightning.Trainer,
        module: _lightning.LightningModule,
        callback: _lightning.Callback,
        state: Mapping[str, Any],
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._module = module
        self._automatic = _lightning.is_automatic(trainer)
        self._measures_early = self._automatic and _lightning.gradients_stay(trainer, callback)
        self._peers = StepExchange(_lightning.world(trainer))
        self._timetable = LoggingSchedule(settings.schedule(_lightning.log_interval(trainer)))
        self._clipper = GradientClipper(trainer)
        self._batch_idx = 0
        self._window = AccumulationWindow(trainer)
        self._late = DeferredSteps(trainer, settings, self._peers.world.size)
        self._open: Step | None = None
        self._stepping = False
        self._closed: list[Step] = []
        self._nodes = ModuleGradientProbe(module, self._peers.world)
        self._nodes_due = False
        self._watches = [
            OptimizerState(index, optimizer, settings.detectors, settings.clip)
            for index, optimizer in enumerate(trainer.optimizers)
        ]
        self._steering = ResponseRunner(trainer, module, settings.responses, self._watches)
        self._judge = StepDecisions(trainer, settings, self._watches, self._clipper, self._steering, self._timetable)
        self._load(state)

    @property
    def chronicle(self) -> IncidentLog:
        """What was found."""
        return self._judge.chronicle

    @property
    def last(self) -> StepRecord | None:
        """What was measured of the last step that was judged."""
        return self._judge.last

    # What Lightning's hooks call, in the order of a batch.

    def batch_starts(self, batch_idx: int) -> None:
        """Begin a batch."""
        self._batch_idx = batch_idx
        step = _lightning.logging_step(self._trainer)
        first = self._watches[0].steps == 0
        self._nodes_due = self._timetable.nodes_due(step, first)
        if self._nodes_due and (not self._automatic or _lightning.closes_window(self._trainer, batch_idx)):
            self._nodes.attach(_lightning.loss_scale(self._trainer)[0])

    def backward_starts(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch; in manual optimization it is only known what training_step returns."""
        if self._automatic:
            self._window.add_loss(loss)

    def backward_ended(self) -> None:
        """Measure the gradients, if those of the whole window are there, their owner is known, and they will stay."""
        if not self._automatic or not _lightning.closes_window(self._trainer, self._batch_idx):
            return
        self._steering.gradients_ready(self._watches[0].optimizer, self._batch_idx, is_scaled=True)
        if self._measures_early and self._open is None:
            watch = self._watches[0]
            self._window.measure_early(self._parameters(watch), self._reuses_norm(watch))

    def optimizer_will_step(self, optimizer: Optimizer) -> None:
        """Judge the gradients that an optimizer is about to be handed, and act on what is found."""
        flight = self._open
        if flight is not None and self._stepping and flight.watch.optimizer is optimizer:
            flight.evaluations += 1  # a line search (LBFGS) asks again; the step's own gradients were the first
            self._clipper.clip(flight.watch, flight.parameters, flight.record, flight.scale, known=False)
            return
        self._close_open()
        self.catch_up()
        watch = self._watch_of(optimizer)
        if not self._automatic:
            is_scaled = _lightning.unscales_itself(watch.optimizer)
            self._steering.gradients_ready(watch.optimizer, self._batch_idx, is_scaled)
        self._begin(watch)

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
        self._steering.step_begins(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._hold_back(optimizer)
            return None
        self._close_open()  # an earlier step of the same batch, which a gradient scaler has left out
        self._stepping = True

        # With a closure, the forward and backward pass and all of our judging happen inside the step.
        def judged() -> Any:
            result = closure()
            self._hold_back(optimizer)
            return result

        return args[:1], {**kwargs, "closure": judged}

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Measure, right after an optimizer's step, what it has changed."""
        self._stepping = False
        self._steering.step_ended(optimizer)
        if self._open is not None and self._open.watch.optimizer is optimizer:
            self._open.watch.steps += 1
            self._open.measure_after(self._clipper.changes(self._open.record))
            self._close_open()

    def batch_ends(self, outputs: Any) -> None:
        """Publish the steps of a batch."""
        self._nodes.detach()
        self._close_open()
        closed, self._closed = self._closed, []
        if not self._automatic:
            self._add_returned_loss(closed, outputs)
        for flight in closed:
            if flight.reading is None:
                self._judge.after_batch(flight)
            else:
                self._late.add(flight)
        self._steering.batch_ended(closed)
        if _lightning.ends_epoch(self._trainer):
            self.catch_up()

    def catch_up(self) -> None:
        """Judge the step whose numbers nobody has waited for, if there is one."""
        for flight in self._late.take():
            self._fill(flight, flight.land())
            self._judge.late(flight)

    def publish_rest(self) -> None:
        """Publish what an exception has cut short."""
        self.catch_up()
        self._close_open()
        closed, self._closed = self._closed, []
        for flight in closed:
            if flight.reading is None:
                self._judge.publish(flight)
            else:
                self._late.add(flight)
        self.catch_up()

    def withdraw(self, batch_ends: bool) -> None:
        """Take part in one more exchange of all processes, only to say that this one's monitor has failed.

        Args:
            batch_ends: Whether this is the end of a batch, where there is an exchange in manual optimization only.
        """
        if not (batch_ends and self._automatic):
            self._peers.withdraw(packs_gradients=not batch_ends)

    def close(self) -> None:
        """Leave the trainer as it was found."""
        self._steering.close()
        self._nodes.detach()
        self._clipper.close()
        if self._settings.clip is not None:
            self._clipper.restore()
        self.chronicle.close()

    def state_dict(self) -> dict[str, Any]:
        """Give what later decisions depend on, in plain values."""
        return {
            "chronicle": self.chronicle.state_dict(),
            "alert_until": self._timetable.alert_until,
            "optimizers": [watch.state_dict() for watch in self._watches],
            "steering": self._steering.state_dict(),
        }

    # The way of one optimizer step.

    def _begin(self, watch: OptimizerState) -> None:
        parameters = self._parameters(watch)
        with self._withdrawing():
            reading = self._window.close(watch.optimizer, parameters, self._reuses_norm(watch))
        flight = self._flight(watch, parameters, reading)
        if not self._nodes_due and self._late.may_wait(flight, reading, self._clipper.changes(flight.record)):
            if reading.gradients.any:
                flight.reading, self._open = reading, flight
                flight.copy_weights(self._settings.update_sample)
        elif self._fill(flight, reading):
            if self._nodes_due:
                flight.record = replace(flight.record, module_gradients=self._node_gradients())
            self._open = flight
            self._judge.before_update(flight)
            self._clipper.know(flight, reading.gradients)

    def _flight(self, watch: OptimizerState, parameters: ParameterSet, reading: AccumulatedReading) -> Step:
        """Give a step with what is known before anything is read of it."""
        step = _lightning.logging_step(self._trainer)
        record = StepRecord(
            step=step,
            batch_idx=self._batch_idx,
            optimizer=watch.index,
            parameters=parameters.names,
            scale_adapts=reading.adapts,
            skipped_steps=self._steering.skipped,
        )
        if watch.policy is None:
            record = self._clipper.set(watch, record)
        return Step(
            watch,
            parameters,
            record,
            is_exact=reading.gradients.torch_total is None,
            scalars_due=self._timetable.scalars_due(step),
            histograms_due=self._timetable.histograms_due(step),
        )

    def _fill(self, flight: Step, reading: AccumulatedReading) -> bool:
        """Put what was read of a step into its record; False if no process has gradients."""
        shards = flight.parameters.shards
        with self._withdrawing():
            local, own_loss = reading.gradients.finish(flight.is_intact), reading.loss
            scale, flight.scale = reading.scale, reading.scale_in_memory
        loss, has_gradients, gathered = self._peers.exchange(
            own_loss, flight.record.batch_idx, reading.gradients.any, shards.packed_norms(local)
        )
        norms = local if shards.copies is None else shards.unpacked_norms(gathered)
        flight.record = with_gradient_norms(
            flight.record, norms, batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value, loss_scale=scale
        )
        return has_gradients

    def _node_gradients(self) -> ModuleGradients | None:
        """Take the error gradients of nodes, on all processes."""
        nodes = self._nodes.take()
        if self._automatic:
            self._nodes.detach()
        return nodes

    def _reuses_norm(self, watch: OptimizerState) -> bool:
        """Tell whether the gradients' norm had better be torch's own: the trainer will clip by it, and logs nothing."""
        step = _lightning.logging_step(self._trainer)
        due = self._timetable.scalars_due(step)
        return not due and self._clipper.expects_to_clip(watch) and not self._late.expects(self._parameters(watch))

    def _hold_back(self, optimizer: Optimizer) -> None:
        if self._open is not None and self._open.held_back and self._open.watch.optimizer is optimizer:
            drop_gradients(optimizer)

    # Small things.

    @contextmanager
    def _withdrawing(self) -> Iterator[None]:
        """Tell the other processes of a failure: they are about to wait for this one."""
        try:
            yield
        except Exception:
            self.withdraw(batch_ends=False)
            raise

    def _parameters(self, watch: OptimizerState) -> ParameterSet:
        return watch.parameters(self._module, self._settings.include, self._settings.exclude, self._peers.world)

    def _watch_of(self, optimizer: Optimizer) -> OptimizerState:
        raw = getattr(optimizer, "optimizer", optimizer)
        return next(watch for watch in self._watches if watch.optimizer is raw)

    def _add_returned_loss(self, closed: Sequence[Step], outputs: Any) -> None:
        """Give each optimizer's last step of a batch, in manual optimization, the loss that training_step gave."""
        tensor = _lightning.returned_loss(outputs)
        value = None if tensor is None else float(read([tensor])[0])
        loss = self._peers.exchange(value, self._batch_idx, False, np.zeros(0))[0]
        for flight in {flight.watch.index: flight for flight in closed}.values():
            flight.record = replace(flight.record, loss=loss.value, batch_idx=loss.batch_idx, rank=loss.rank)

    def _close_open(self) -> None:
        if self._open is not None:
            self._clipper.forget()
            self._closed.append(self._open)
            self._open = None

    def _load(self, state: Mapping[str, Any]) -> None:
        if state:
            self.chronicle.load_state_dict(state["chronicle"])
            self._timetable.alert_until = state["alert_until"]
            for watch, plain in zip(self._watches, state["optimizers"], strict=False):
                watch.load_state_dict(plain)
        self._steering.start()
        if state:
            self._steering.load_state_dict(state["steering"])
