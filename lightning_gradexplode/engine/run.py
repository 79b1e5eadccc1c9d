"""One training run: what a training loop calls, in the order of a batch, and what is done then.

What it calls for each step of an optimizer is in `engine/optimizer_steps.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.accumulation import host_number
from lightning_gradexplode.engine.agreement import allowed, begin_together
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.conflicts import conflicts
from lightning_gradexplode.engine.failure import never_fatal
from lightning_gradexplode.engine.optimizer_steps import OptimizerSteps
from lightning_gradexplode.engine.step import Phase
from lightning_gradexplode.engine.unseen_steps import UnseenSteps
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.guarded import GuardedLoop
from lightning_gradexplode.loggers.console import log_to_terminal
from lightning_gradexplode.measure.recording import RecordedCalls
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.respond import ExplosionError

_phase = operator.attrgetter("phase")
_scalars_due = operator.attrgetter("scalars_due")


class TrainingRun(OptimizerSteps):
    """Monitors one training run. An adapter in `lightning_gradexplode.hosts` calls it as the training goes on.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from, as `state_dict` returned it.
    """

    def __init__(self, arguments: Arguments, loop: TrainingLoop, state: Mapping[str, Any]) -> None:
        loop = GuardedLoop(loop)
        stop_listening: Callable[[], object] = log_to_terminal() if loop.is_main_process else int
        failure, lines = None, []
        try:
            arguments = allowed(arguments, loop)
            try:
                run = Components.build(arguments, loop, self.before_step, self.after_step, self.within_step)
                lines = [*conflicts(arguments, loop)] if loop.is_main_process else []
            except Exception as error:
                failure = error
            begin_together(loop.process_group, arguments, failure)
        except Exception:
            loop.process_group.close()
            stop_listening()
            raise
        super().__init__(run, loop, RecordedCalls(loop.is_main_process), arguments.clip is not None, stop_listening)
        self._unseen = UnseenSteps(loop) if loop.may_step_unseen else None
        self._in_batch = self._end_is_due = self._is_unannounced = False
        self._nonfinite_loss: float | None = None
        self._run.responses.start()
        fresh = [f"in the checkpoint's state, {line}" for line in self._run.load_state_dict(state)]
        for line in [*fresh, *lines]:
            logger.warning("gradexplode: %s", line)
        if self._clips:
            loop.use_measured_norm(self._run.clipper.clip_by_measured_norm)
        self._run.optimizers.listen()  # last: a run that could not be built must not be called

    # What a training loop calls, in the order of a batch.

    @never_fatal
    def batch_expected(self) -> None:
        """Measure error gradients of modules from the coming forward pass on, if they are due.

        For loops in which a batch is known to have begun only when its forward pass is over.
        """
        if self._modules_are_due(self._run.schedule.due(self._loop.step)[1]):
            self._run.module_gradients.attach(self._loop.loss_scale()[0])

    @never_fatal
    def batch_started(self, batch: Any, batch_idx: int, forward_is_over: bool = False) -> None:
        """Begin a batch.

        Args:
            batch: The batch.
            batch_idx: Its index.
            forward_is_over: Whether its forward pass was computed already, after a call of `batch_expected`.
        """
        run, number = self._run, self._loop.step
        self._measurement.batch_idx, self._announced, self._inside_step = batch_idx, None, False
        self._in_batch = True
        run.optimizers.refresh()
        if self._unseen is not None:
            self._unseen.batch_started()
        scalars_due, histograms_due = run.schedule.due(number)
        due = self._measurement.module_gradients_due = self._modules_are_due(histograms_due)
        run.evidence.batch_started(batch, batch_idx, scalars_due)
        self._is_unannounced = forward_is_over
        if forward_is_over:
            if not due:
                run.module_gradients.detach()
        elif due and (not run.is_automatic or self._loop.completes_step(batch_idx)):
            run.module_gradients.attach(self._loop.loss_scale()[0])

    def _modules_are_due(self, histograms_due: bool) -> bool:
        run = self._run
        return histograms_due or (run.schedule.has_histograms and run.optimizers.are_new)

    @never_fatal
    def gradients_cleared(self) -> None:
        """Read the numbers of the step before, if they were deferred, before its gradients are cleared."""
        self._run.window.gradients_cleared()
        if self._run.deferred.batches:
            self._deferred_reading.read()

    @never_fatal
    def loss_computed(self, loss: Tensor, has_graph: bool = False) -> None:
        """Add the loss of a micro-batch.

        In manual optimization the loss is what ``training_step`` returns. Losses of single backward passes, which may
        be those of adversaries, count only if they are not finite and nothing is returned.

        Args:
            loss: The loss.
            has_graph: Whether its backward pass is about to begin.
        """
        run, value = self._run, host_number(loss)
        if has_graph and value is not None and not (run.graphs.is_calm and math.isfinite(value)):
            run.graphs.read(loss, value)
        if run.is_automatic:
            run.window.add_loss(loss, value)
        elif value is not None and not math.isfinite(value) and self._loop.loss_scale()[0] is None:
            self._nonfinite_loss = value
        if len(run.optimizers.states) == 1:
            run.window.look_for_clearing()
        elif has_graph:
            self._pass_begins()

    @never_fatal
    def backward_begins(self) -> None:
        """Find out whether the gradients were cleared; for loops whose losses are known after the backward pass."""
        if len(self._run.optimizers.states) == 1:
            self._run.window.look_for_clearing()
        else:
            self._pass_begins()

    def _pass_begins(self) -> None:
        """Find out which gradients were cleared: of several optimizers, one may be without the others."""
        self._run.window.passes.begins([state.parameters() for state in self._run.optimizers.states])

    @never_fatal
    def graph_exists(self, loss: Tensor) -> None:
        """Read the graph of a loss whose backward pass is about to begin, if it may show what went wrong."""
        value = host_number(loss)
        if value is not None:
            self._run.graphs.read(loss, value)

    @never_fatal
    def backward_ended(self) -> None:
        """Measure the gradients, if those of all micro-batches are there and the optimizer gets them as they are."""
        run = self._run
        run.window.backward_passes += 1
        if len(run.optimizers.states) > 1:
            run.window.passes.ended([state.parameters() for state in run.optimizers.states])
        if self._is_unannounced and self._measurement.module_gradients_due:  # a further micro-batch may follow
            run.module_gradients.pass_ended()
        if self._unseen is not None:
            self._unseen.backward_ended()
        if not run.is_automatic:
            if self._open is None:  # the user may clip before the step
                for state in run.optimizers.states:
                    self._measurement.measure_early(state)
            return
        if not self._loop.completes_step(self._measurement.batch_idx):
            run.evidence.micro_batch_ended(run.window.newest_loss)
            return
        for state in run.optimizers.states:
            if run.responses.adds_gradients and not run.counts_end_of_backward:
                run.responses.gradients_ready(state.optimizer, self._measurement.batch_idx)
            if self._open is None and (run.gradients_are_final or self._loop.may_clip_by_itself):
                self._measurement.measure_early(state)

    @never_fatal
    def batch_ended(self, outputs: Any = None) -> None:
        """Finish the steps of a batch.

        Args:
            outputs: What ``training_step`` returned, where losses are known by that only.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        self._in_batch = False
        if self._measurement.module_gradients_due:
            self._run.module_gradients.detach()
        is_calm = self._run.calm_steps.end_batch()
        if is_calm and self._run.acts:
            self._after.end_calm()
        if self._open is not None:
            self._close(self._open)
        steps, self._stepped = self._stepped, []
        if self._unseen is not None:
            self._unseen.batch_ended(is_calm or bool(steps))
        if is_calm and not steps:
            self._run.evidence.inputs = None
            if self._run.acts:
                self._end_batch()
            return  # nothing was found that has consequences
        if not self._run.is_automatic:
            self._after.set_returned_loss(steps, outputs, self._measurement.batch_idx, self._nonfinite_loss)
            self._nonfinite_loss = None if steps else self._nonfinite_loss  # it belongs to a later step
        self._run.evidence.inputs = None
        if any(map(_scalars_due, steps)):
            self._after.set_logged_scalars(steps)
        deferred, agreement = self._run.deferred, self._run.agreement
        is_deferred = Phase.COLLECTING in map(_phase, steps)
        if is_deferred:
            deferred.add(steps)
        else:
            if deferred.detected and not agreement.by_notes and not self._has_graph:
                self._deferred_reading.settle()
            self._after.finish(steps)
        is_any = deferred.batches or deferred.detected or (agreement.by_notes and agreement.needs_notes)
        if is_any and self._loop.is_last_batch:
            self._deferred_reading.finish()
            is_deferred = False
        self._end_batch(is_deferred)

    def _end_batch(self, is_deferred: bool = False) -> None:
        """End a batch now, or once the backward pass is over that is running."""
        if self._has_graph:
            self._end_is_due = True
        else:
            self._after.end_batch(is_deferred)

    @never_fatal
    def set_graph(self, exists: bool) -> None:
        """Set whether a backward pass is running, in which the end of the batch before it may become known.

        Responses must not change weights and buffers then; they are called once it is over.
        """
        self._has_graph = exists
        if self._end_is_due and not exists:
            self._end_is_due = False
            self._after.end_batch(is_deferred=True)  # the next forward pass has changed the buffers

    @never_fatal
    def flush(self) -> None:
        """Read the numbers that were deferred; within a batch what was found has consequences at the next update."""
        self._deferred_reading.read()
        if not self._in_batch and not self._run.agreement.by_notes:
            self._deferred_reading.settle()
            self._after.end_batch()

    @never_fatal
    def finish_deferred(self) -> None:
        """Finish the steps whose numbers were deferred, between two batches; a collective call."""
        self._deferred_reading.finish()
        self._after.end_batch()

    @never_fatal
    def finish_before_checkpoint(self) -> bool | None:
        """Finish the steps of several processes that were held until the next exchange; a collective call.

        Within a batch, what was found has consequences at the next update.

        Returns:
            Whether that may have changed weights, optimizers or schedules; None if no step was finished.
        """
        deferred, agreement = self._run.deferred, self._run.agreement
        if not agreement.by_notes:
            return None
        self._deferred_reading.finish(has_effects=False)
        if self._in_batch or not deferred.detected:
            return None
        found_any = deferred.found_any(agreement)
        self._deferred_reading.settle()
        self._after.end_batch()
        return found_any

    @never_fatal
    def aborted(self) -> None:
        """Log what was measured of a step that an exception has interrupted.

        The other processes may know nothing of the exception, so that nothing is exchanged with them here; of a step
        whose numbers were deferred, those are kept that were exchanged when it began, and have arrived.
        """
        try:
            self._finish_interrupted()
        except ExplosionError:
            raise
        except Exception as error:  # such as one of the device, which may be what ends the run
            logger.warning(
                "gradexplode: the step that an exception has interrupted could not be read: %s", describe(error)
            )
        run = self._run
        self._after.evaluate_held()
        run.reporter.publish(run.responses.attempts)
        run.reporter.write_steps(run.evidence.evidence(run.responses.attempts), self.diagnosis())

    def _finish_interrupted(self) -> None:
        is_alone = self._run.exchange.world.size == 1
        if is_alone:
            self._deferred_reading.read()
            self._deferred_reading.settle()
        self._run.calm_steps.close()
        if self._open is not None:
            if self._open.phase is Phase.MEASURED and not is_alone:
                self._open.phase = Phase.DECIDED  # which may need the other processes
            self._close(self._open)
        steps, self._stepped = self._stepped, []
        if is_alone:
            for step in steps:
                if step.phase is Phase.COLLECTING:
                    self._deferred_reading.resolve(step)
                    self._deferred_reading.act(step)
            self._after.freeze([step for step in steps if step.phase is not Phase.COLLECTING])
            self._record_interrupted_loss()
        else:
            self._deferred_reading.keep_arrived(steps)

    def _record_interrupted_loss(self) -> None:
        """Detect a loss that is not finite and whose backward pass has raised, as in anomaly detection."""
        run, loss = self._run, self._run.window.unused_loss
        if loss is None or math.isfinite(loss) or self._loop.loss_scale()[0] is not None:
            return
        state, place = run.optimizers.states[0], self._measurement.batch_idx
        record = StepRecord(self._loop.step, place, loss=loss, epoch=self._loop.epoch, update_taken=False)
        new = run.keep_findings(record.step, state.detectors.begin(record))
        run.evidence.add(record, run.evidence.inputs_of_step(), new, run.log.incidents.began, before_update=True)
        state.recorder.add(record)

    # The end.

    def close(self) -> None:
        """Restore what was changed of the training loop and its optimizers. Never raises."""
        self._shutdown.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what later decisions depend on, in plain values, with a version."""
        self._after.evaluate_held()
        return self._run.state_dict()
