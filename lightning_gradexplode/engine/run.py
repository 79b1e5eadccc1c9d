"""One training run: the core loop of every optimizer step, from the calls of a training loop to records and logs.

A step passes through three places: `TrainingRun.gradients_ready` (measure the gradients, exchange, detect, decide clip
value and response), `TrainingRun.stepped` (measure the weights), and `TrainingRun._finish` (detect, respond, freeze the
record, log). On an accelerator, where nothing has to be decided before the update, the numbers are read later, and the
first place's detection happens in the last one.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.accumulation import AccumulationWindow
from lightning_gradexplode.engine.clipping import GradientClipper
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.engine.findings import FindingLog
from lightning_gradexplode.engine.optimizers import OptimizerList
from lightning_gradexplode.engine.reporting import IncidentReporter
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.engine.schedule import LoggingSchedule
from lightning_gradexplode.engine.state import VERSION, load_parts, save_parts, upgraded
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.guarded import GuardedLoop
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console, log_to_terminal
from lightning_gradexplode.measure.gradients import norms_of
from lightning_gradexplode.measure.module_gradients import ModuleGradientProbe
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import Diagnosis, Finding, Severity, StepRecord, combine
from lightning_gradexplode.respond import ExplosionError

logger = logging.getLogger("lightning_gradexplode")

P = ParamSpec("P")
R = TypeVar("R")
Call = Callable[Concatenate["TrainingRun", P], R]


def never_fatal(call: Call[P, R]) -> Call[P, R | None]:
    """Make a failure of the monitor switch it off, with one log entry, and not end the training run."""

    @functools.wraps(call)
    def guarded(self: TrainingRun, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self.failed:
            self.announce_failure(call.__name__)
            return None
        try:
            return call(self, *args, **kwargs)
        except ExplosionError:
            raise
        except Exception:
            self.fail(call.__name__)
            return None

    return guarded


class TrainingRun:
    """Monitors one training run. An adapter in `lightning_gradexplode.hosts` calls it as the training goes on.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from, as `state_dict` returned it.

    Attributes:
        last: The record of the last step that is finished.
        failed: Whether the monitor has failed and is off.
    """

    def __init__(self, arguments: Arguments, loop: TrainingLoop, state: Mapping[str, Any]) -> None:
        loop = GuardedLoop(loop)
        self.last: StepRecord | None = None
        self.failed = False
        self._released = False
        self._arguments = arguments
        self._loop = loop
        self._automatic = loop.is_automatic
        self._exchange = StepExchange(loop.process_group)
        self._schedule = LoggingSchedule(*arguments.intervals(loop.log_every_n_steps))
        self._window = AccumulationWindow(loop)
        self._clipper = GradientClipper(loop, arguments.clip is not None)
        acting = [response for response in arguments.responses if not response.only_warns]
        self._deferred = DeferredSteps(loop, decides=arguments.clip is not None or bool(acting))
        self._acts = bool(acting)
        self._optimizers = OptimizerList(loop, arguments, self.before_step, self.after_step)
        self._responses = ResponseRunner(loop, arguments.responses, self._optimizers.states)
        loggers = loop.loggers if loop.is_main_process else []
        self._loggers = LoggerCollection(loggers, len(self._optimizers.states) > 1, arguments.alert_level)
        self._evidence = EvidenceCollector(loop, arguments, self._optimizers.states)
        self._stop_listening = log_to_terminal() if loop.is_main_process else None
        console = Console() if loop.is_main_process else None
        self._console = console
        self._log = FindingLog(self._loggers, console)
        self._reporter = IncidentReporter(
            loop,
            loop.report_folder(arguments.report),
            self._log,
            self._evidence,
            self._loggers,
            console,
            [type(one).__name__ for one in acting],
        )
        self._module_gradients = ModuleGradientProbe(loop.module, loop.process_group)
        self._module_gradients_due = False
        self._batch_idx = 0
        self._open: Step | None = None
        self._inside_step = False
        self._announced: Optimizer | None = None
        self._stepped: list[Step] = []
        self._load(state)
        if arguments.clip is not None:
            loop.use_measured_norm(self._clipper.clip_by_measured_norm)
        self._optimizers.listen()  # last: a run that could not be built must not be called

    @property
    def findings(self) -> list[Finding]:
        """What was found, oldest first."""
        return self._log.findings

    @property
    def report_folder(self) -> Path | None:
        """The folder with the report of this run, None if there is none yet."""
        return self._reporter.folder

    def report(self) -> Path | None:
        """Write a report of the run as it is now, and return its folder; None where no reports are written."""
        self._reporter.write(self._evidence.evidence(self._responses.attempts), self.diagnosis())
        return self._reporter.folder

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident, None if there was none."""
        return self._evidence.diagnosis(self._responses.attempts)

    # What a training loop calls, in the order of a batch.

    @never_fatal
    def batch_started(self, batch: Any, batch_idx: int) -> None:
        """Begin a batch."""
        self._batch_idx, self._announced, self._inside_step = batch_idx, None, False
        self._optimizers.refresh()
        number = self._loop.step
        self._module_gradients_due = self._schedule.module_gradients_due(number, self._optimizers.are_new)
        self._evidence.batch_started(batch, batch_idx, self._schedule.scalars_due(number))
        if self._module_gradients_due and (not self._automatic or self._loop.completes_step(batch_idx)):
            self._module_gradients.attach(self._loop.loss_scale()[0])

    @never_fatal
    def gradients_cleared(self) -> None:
        """Read the numbers of the step before, if they were deferred, before its gradients are cleared."""
        self._window.gradients_cleared()
        self._flush()

    @never_fatal
    def loss_computed(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch; in manual optimization only what ``training_step`` returns is known."""
        if self._automatic:
            self._window.add_loss(loss)
        if (not self._automatic or self._loop.counts_end_of_backward) and len(self._optimizers.states) == 1:
            self._window.look_for_clearing()

    @never_fatal
    def backward_ended(self) -> None:
        """Measure the gradients, if those of all micro-batches are there and the optimizer gets them as they are."""
        self._window.backward_ended()
        if not self._automatic:
            if self._open is None:  # the user may clip before the step
                for state in self._optimizers.states:
                    self._window.measure_early(state.optimizer, self._optimizers.parameters(state), False)
            return
        if not self._loop.completes_step(self._batch_idx):
            return
        for state in self._optimizers.states:
            if self._responses.adds_gradients and not self._loop.counts_end_of_backward:
                self._responses.gradients_ready(state.optimizer, self._batch_idx)
            if self._open is None and self._loop.gradients_are_final:
                parameters = self._optimizers.parameters(state)
                self._window.measure_early(state.optimizer, parameters, self._reuses_norm(state.index))

    @never_fatal
    def gradients_ready(self, optimizer: Optimizer) -> None:
        """Measure the gradients that an optimizer is about to get, detect, and decide clip value and response.

        Args:
            optimizer: The optimizer, as the training loop knows it.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        state = self._optimizers.state_of(optimizer)
        if state is None:
            return
        self._announced = state.optimizer
        step = self._open
        if step is not None and self._inside_step and step.state is state:
            self._evaluated_again(step)
            return
        self._close_open()
        self._flush()
        if self._responses.adds_gradients and (not self._automatic or self._loop.counts_end_of_backward):
            self._responses.gradients_ready(state.optimizer, self._batch_idx)
        step = self._collect(state.index)
        if (
            not self._module_gradients_due
            and self._deferred.is_possible
            and self._deferred.accepts(step, self._clipper.changes_gradients(step))
        ):
            if step.reading.gradients.any:
                step.keep_weights(self._arguments.update_sample)
                self._open = step
        elif self._read(step):
            if self._module_gradients_due:
                step.set(module_gradients=self._take_module_gradients())
            self._open = step
            if self._may_be_cleaned(step):
                return  # decided in `_hold_back`, by what the optimizer gets
            self._decide(step)
            if not step.is_skipped:
                if state.policy is not None:
                    self._clipper.clip(step, first=step.gradients_intact)
                    self._clipper.remember(step)
                step.keep_weights(self._arguments.update_sample)
            elif not state.has_hooks:
                drop_gradients(state.optimizer)

    def _may_be_cleaned(self, step: Step) -> bool:
        """Return whether the user's own code may still replace gradients that are not finite."""
        is_finite = step.grad_norm is not None and math.isfinite(step.grad_norm)
        can_wait = self._automatic and step.state.has_hooks and not step.reading.has_scale  # a scaler leaves it out
        return can_wait and not is_finite and self._loop.may_change_gradients

    @never_fatal
    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arrange, in an optimizer's pre-step hook, that an update which is held back does not happen."""
        if self._acts:
            self._responses.step_begins(optimizer)
        policy = self._optimizers.policy_of(optimizer) if self._arguments.clip is not None else None
        if policy is not None:
            policy.step_begins(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._announce(optimizer)
            self._hold_back(optimizer)
            return None
        self._close_open()  # an earlier step of the same batch, which a gradient scaler has left out
        self._inside_step = True

        # With a closure, the forward pass, the backward pass and `gradients_ready` are called inside the step.
        def evaluate() -> Any:
            self._announced = None
            result = closure()
            self._announce(optimizer)
            self._hold_back(optimizer)
            return result

        return args[:1], {**kwargs, "closure": evaluate}

    @never_fatal
    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure, in an optimizer's post-step hook, what the update has changed."""
        self._inside_step, self._announced = False, None
        policy = self._optimizers.policy_of(optimizer) if self._arguments.clip is not None else None
        if policy is not None:
            policy.step_ended(optimizer)
        if self._acts:
            self._responses.step_ended(optimizer)
        step = self._open
        if step is None or step.state.optimizer is not optimizer:
            return
        self._measure_update(step)
        self._close_open()

    @never_fatal
    def batch_ended(self, outputs: Any = None) -> None:
        """Finish the steps of a batch.

        Args:
            outputs: What ``training_step`` returned, where losses are known by that only.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        if self._module_gradients_due:
            self._module_gradients.detach()
        self._close_open()
        steps, self._stepped = self._stepped, []
        if not self._automatic:
            self._set_returned_loss(steps, outputs)
        self._evidence.inputs = None
        if any(step.scalars_due for step in steps):
            self._set_logged(steps)
        if steps and steps[0].phase is Phase.COLLECTING:
            self._deferred.add(steps[0])  # the only step of its batch
        else:
            self._finish(steps)
        if self._loop.is_last_batch:
            self._flush()

    @never_fatal
    def flush(self) -> None:
        """Finish the step whose numbers were deferred, if there is one."""
        self._flush()

    @never_fatal
    def aborted(self) -> None:
        """Log what was measured of a step that an exception has interrupted."""
        self._flush()
        self._close_open()
        steps, self._stepped = self._stepped, []
        for step in steps:
            if step.phase is Phase.COLLECTING:
                self._decide_late(step)
        self._freeze(steps)
        self._publish()
        self._reporter.write_steps(self._evidence.evidence(self._responses.attempts), self.diagnosis())

    def close(self) -> None:
        """Restore what was changed of the training loop and its optimizers. Never raises."""
        self._release()
        self._restore(self._optimizers.close)

    def _release(self) -> None:
        """Restore the training loop, but for the hooks of optimizers, which one of them may be calling now."""
        if not self._released:
            self._released = True
            self._restore(self._responses.close, self._module_gradients.detach, self._clipper.close, self._end_console)

    def _end_console(self) -> None:
        if self._console is not None:
            self._console.end_incident()
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    @staticmethod
    def _restore(*parts: Callable[[], None]) -> None:
        for restore in parts:
            try:
                restore()
            except Exception:
                logger.exception("gradexplode: the monitor could not restore everything")

    # The way of one step.

    @never_fatal
    def _announce(self, optimizer: Optimizer) -> None:
        """Measure, detect and respond where a step was begun on an optimizer that the training loop does not know."""
        if self._announced is not optimizer:
            self.gradients_ready(optimizer)

    def _evaluated_again(self, step: Step) -> None:
        """Measure the gradients of a further evaluation of a closure within the same step.

        Of a line search the first gradients are the step's own; any other optimizer, such as sharpness-aware
        minimization, updates by the last ones.
        """
        step.evaluations += 1
        self._window.discard_losses()
        if not isinstance(step.state.optimizer, LBFGS):
            self._measure_again(step)
        self._clipper.clip(step, first=False)

    def _measure_again(self, step: Step) -> None:
        """Replace the gradient norms of a step, and hold back its update if they are not finite any more."""
        step.measure_again()
        if self._acts and not step.is_skipped:
            self._responses.respond(step, (), before_update=True)

    def _measure_update(self, step: Step) -> None:
        """Measure what the update of a step has changed."""
        step.state.steps += 1
        if not self._automatic or self._loop.counts_end_of_backward:
            self._window.stepped(step.parameters)
        if step.is_skipped:
            return
        if step.scalars_due:
            changed = not step.gradients_intact or self._loop.may_change_gradients
            step.measure_clipped(changed or self._clipper.changes_gradients(step))
        step.measure_weights()
        step.set(update_taken=True)
        if self._evidence.awaits_update:
            self._evidence.updated(step)
        if step.phase is not Phase.COLLECTING:
            step.phase = Phase.STEPPED

    def _collect(self, index: int) -> Step:
        """Start the measurement of a step's gradients."""
        state, number = self._optimizers.states[index], self._loop.step
        try:
            parameters = self._optimizers.parameters(state)
            reading = self._window.close(state.optimizer, parameters, self._reuses_norm(index))
        except Exception:
            self._exchange.withdraw(packs_gradients=True)  # the other processes wait for this one
            raise
        step = Step(
            state,
            parameters,
            reading,
            self._schedule.scalars_due(number),
            self._schedule.histograms_due(number),
            step=number,
            batch_idx=self._batch_idx,
            epoch=self._loop.epoch,
            optimizer=index,
            scale_adapts=reading.scale_adapts,
            skipped_steps=self._responses.skipped,
            learning_rate=state.learning_rate,
            micro_batches=reading.micro_batches,
            backward_passes=reading.backward_passes,
            update_taken=False,
        )
        step.inputs = self._evidence.inputs
        if not self._automatic or self._loop.counts_end_of_backward:
            step.gradients_intact = reading.gradients.holds(parameters)
        if state.policy is None:
            self._clipper.set_threshold(step, EMPTY)
        return step

    def _read(self, step: Step) -> bool:
        """Read the numbers of a step, and exchange them with the other processes.

        Returns:
            Whether any process has gradients.
        """
        reading, shards = step.reading, step.parameters.shards
        try:
            local, own_loss = reading.gradients.finish(step.gradients_intact), reading.loss
            scale, step.scale = reading.scale, reading.scale_in_memory
        except Exception:
            self._exchange.withdraw(packs_gradients=True)
            raise
        step.phase = Phase.MEASURED
        if self._exchange.world.size == 1:
            step.set_gradient_norms(local)
            step.set(loss=own_loss, loss_scale=scale)
            return reading.gradients.any
        loss, has_gradients, gathered = self._exchange.exchange(
            own_loss, self._batch_idx, reading.gradients.any, shards.packed_norms(local)
        )
        step.set_gradient_norms(local if shards.copies is None else shards.unpacked_norms(gathered))
        step.set(batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value, loss_scale=scale)
        return has_gradients

    def _decide(self, step: Step, before_update: bool = True) -> None:
        """Detect what a step's loss and gradients show, and decide clip value and response."""
        findings = self._detect(step, before_update)
        step.phase = Phase.DECIDED  # a response may raise
        if self._acts or findings:
            self._responses.respond(step, findings, before_update)

    def _detect(self, step: Step, before_update: bool) -> Sequence[Finding]:
        """Detect what a step's loss and gradients show, and determine its clip value."""
        detectors = step.state.detectors
        by_value = (
            step.clip_algorithm == "value" if step.state.policy is None else step.state.policy.algorithm == "value"
        )
        if detectors.wants_start:
            step.measure_start()
        step.measure_gradients(by_value)
        record = step.record()
        findings = detectors.begin(record)
        step.state.log_failures()
        if findings:
            news = self._add_findings(step, findings)
            step.measure_gradients(by_value)  # after a finding everything is due
            self._evidence.add(step, news, self._log.incidents.began, before_update)
        if step.histograms_due or self._module_gradients_due:  # a report compares with the run's first step
            step.measure_gradient_histograms()
        if step.state.policy is not None:
            self._clipper.set_threshold(step, step.record() if findings else record)
        if step.clip_algorithm is not None:
            self._clipper.set_clip_rate(step)
        return findings

    def _decide_late(self, step: Step) -> None:
        """Read and decide a step whose optimizer has stepped already."""
        step.decided_late = True
        step.gradients_intact = step.reading.gradients.holds(step.parameters)
        may_be_clipped = self._clipper.changes_gradients(step)
        step.state.changes_gradients |= not step.gradients_intact and not may_be_clipped
        self._read(step)
        self._decide(step, before_update=False)
        if step.scalars_due and not may_be_clipped:
            step.set_unclipped()

    def _finish(self, steps: Sequence[Step]) -> None:
        """Detect what the steps of a batch have changed, respond, freeze their records, and log them together."""
        for step in steps:
            detectors = step.state.detectors
            findings = detectors.proceed(step.record(), step.decided_late)
            step.state.log_failures()
            if findings:
                news = self._add_findings(step, findings)
                self._evidence.add(step, news, self._log.incidents.began, before_update=False)
                self._responses.respond(step, findings, before_update=False)
        records = self._freeze(steps)
        if self._acts:
            self._responses.batch_ended(records)
        if self._log.has_critical:
            self._publish()

    def _freeze(self, steps: Sequence[Step]) -> list[StepRecord]:
        """Make the records of the steps of a batch, keep and log them."""
        records = []
        for step in steps:
            step.phase, step.inputs = Phase.FINISHED, None
            record = step.record()
            if record.histograms or record.module_gradients is not None:
                self._reporter.observe(record)
            if record.histograms and not step.histograms_due:
                record = replace(record, histograms={})
            self.last = record
            step.state.recorder.add(record)
            if record.nonfinite_weights is not None:
                self._evidence.weights_are_finite = record.nonfinite_weights == 0
            records.append(record)
        if not records:
            return []
        batch = records[0] if len(records) == 1 else combine(records)
        metrics = {"gradexplode/grad_norm": batch.grad_norm, "gradexplode/update_ratio": batch.update_ratio}
        known = {name: value for name, value in metrics.items() if value is not None}
        self._loop.publish_metrics({**known, "gradexplode/severity": float(batch.severity)})
        if any(step.scalars_due for step in steps):
            logged = [self._responses.with_scalars(r, step.state) for r, step in zip(records, steps, strict=True)]
            shown = [step.parameters.shown for step in steps]
            self._loggers.log_batch(logged, shown, self._arguments.per_parameter)
        if self._log.incidents.began is not None and self._log.incidents.ends(batch.step):
            self._responses.incident_ended()
        return records

    def _publish(self) -> None:
        self._reporter.publish(self._responses.attempts)

    def _add_findings(self, step: Step, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Keep and log a step's findings, and make everything due where one of them is new.

        Returns:
            Those that are new to their incident.
        """
        step.add_findings(findings)
        news = self._log.add(findings)
        if any(finding.severity >= Severity.WARNING for finding in news):
            self._schedule.alert(step.number)
            step.scalars_due = self._schedule.scalars_due(step.number)
            step.histograms_due = self._schedule.histograms_due(step.number)
        return news

    def _flush(self) -> None:
        if self._deferred.is_possible:
            for step in self._deferred.take():
                self._decide_late(step)
                self._finish([step])

    # Small things.

    def _take_module_gradients(self) -> Any:
        """Return the error gradients of modules of all processes."""
        gradients = self._module_gradients.take()
        if self._automatic:
            self._module_gradients.detach()
        return gradients

    def _reuses_norm(self, index: int) -> bool:
        """Return whether to measure by torch's own kernel: the loop will clip by its norm, and nothing is logged."""
        if self._arguments.clip is None:
            return False
        state = self._optimizers.states[index]
        if not self._clipper.expects_norm_clipping(state) or self._schedule.scalars_due(self._loop.step):
            return False
        return not self._deferred.expects(self._optimizers.parameters(state))

    @never_fatal
    def _hold_back(self, optimizer: Optimizer) -> None:
        step = self._open
        if step is None or step.state.optimizer is not optimizer:
            return
        if step.phase is Phase.MEASURED:  # what was not finite may have been cleaned since
            step.set_gradient_norms(norms_of(step.parameters, step.parameters.gradients, step.scale))
            self._decide(step)
            step.keep_weights(self._arguments.update_sample)
        if step.is_skipped:
            drop_gradients(optimizer)

    def _close_open(self) -> None:
        if self._open is not None:
            if self._open.phase is Phase.MEASURED:  # its optimizer was never called
                self._decide(self._open, before_update=False)
            if self._arguments.clip is not None:
                self._clipper.forget()
            if not self._open.state.has_hooks:
                self._measure_update(self._open)  # the loop has called the optimizer by now
            self._stepped.append(self._open)
            self._open = None

    def _set_logged(self, steps: Sequence[Step]) -> None:
        """Set the scalars that the user's module logged in this batch; they are read at once."""
        try:
            values = dict(islice(self._loop.logged_scalars().items(), MOST_LOGGED))
            tensors = [value for value in values.values() if isinstance(value, Tensor)]
            numbers = iter(read(tensors).tolist() if tensors else ())
            logged = {
                name: next(numbers) if isinstance(value, Tensor) else float(value) for name, value in values.items()
            }
        except Exception as error:
            logger.debug("gradexplode: the logged scalars of a batch could not be read: %s", error)
            return
        for step in steps:
            step.set(logged=logged)

    def _set_returned_loss(self, steps: Sequence[Step], outputs: Any) -> None:
        """Set the loss of each optimizer's last step of a batch to what ``training_step`` returned."""
        tensor = self._loop.returned_loss(outputs)
        value = None if tensor is None else float(read([tensor])[0])
        loss = self._exchange.exchange(value, self._batch_idx, False, np.zeros(0))[0]
        for step in {step.state.index: step for step in steps}.values():
            step.set(loss=loss.value, batch_idx=loss.batch_idx, rank=loss.rank)

    # Failure and state.

    def fail(self, call: str) -> None:
        """Switch the monitor off after an error in one of its calls, log it, and restore the training loop."""
        self.failed = True
        logger.exception("gradexplode: the monitor failed and is off; the training goes on without it")
        self._release()

    def announce_failure(self, call: str) -> None:
        """Participate once in the next exchange, so that the other processes learn of the failure."""
        if call == "gradients_ready":
            self._exchange.withdraw(packs_gradients=True)
        elif call == "batch_ended" and not self._automatic:
            self._exchange.withdraw(packs_gradients=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what later decisions depend on, in plain values, with a version."""
        return {"version": VERSION, "optimizers": self._optimizers.state_dicts(), **save_parts(self._parts)}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._responses.start()
        if not state:
            return
        state = upgraded(state)
        lines = load_parts(self._parts, state)
        lines += self._optimizers.load_states(state.get("optimizers"))
        for line in lines:
            logger.warning("gradexplode: in the checkpoint's state, %s", line)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"findings": self._log, "schedule": self._schedule, "responses": self._responses}


EMPTY = StepRecord(step=-1)

MOST_LOGGED = 32
"""Number of scalars of the user's module that are recorded of a step."""
