"""One training run: its parts, the calls of a training loop that go to each, its results, and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.batches import Batches
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.conflicts import conflicts
from lightning_gradexplode.engine.decisions import Decisions
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.device_exchange import DeviceExchange
from lightning_gradexplode.engine.expected_losses import ExpectedLosses
from lightning_gradexplode.engine.failure import CallGuard, never_fatal
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.interrupted_steps import InterruptedSteps
from lightning_gradexplode.engine.joint_start import allowed, begin_together
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.optimizer_steps import OptimizerSteps
from lightning_gradexplode.engine.shutdown import Shutdown
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.guarded import GuardedLoop
from lightning_gradexplode.loggers.console import log_to_terminal
from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.records import Diagnosis, Finding, StepRecord
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.respond import ExplosionError


class TrainingRun:
    """Monitors one training run. An adapter in `lightning_gradexplode.hosts` calls it as the training goes on.

    It holds the objects that do the work, each with one concern and a state of its own, and passes the calls of the
    training loop on to them. The first call that fails switches the monitor off.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from, as `state_dict` returned it.

    Attributes:
        guard: Guards the calls.
        graph_capture: Detects calls that are captured by a CUDA graph or traced by ``torch.compile``.
    """

    def __init__(self, arguments: Arguments, loop: TrainingLoop, state: Mapping[str, Any]) -> None:
        loop = GuardedLoop(loop)
        remove_log_handler: Callable[[], object] = log_to_terminal() if loop.is_main_process else lambda: None
        failure, lines = None, []
        try:
            arguments = allowed(arguments, loop)
            try:
                components = Components.build(arguments, loop)
                lines = [*conflicts(arguments, loop)] if loop.is_main_process else []
            except Exception as error:
                failure = error
            begin_together(loop.process_group, arguments, failure)
        except Exception:
            loop.process_group.close()
            remove_log_handler()
            raise
        exchange = DeviceExchange(components)
        measurement, after = GradientMeasurement(components, exchange), AfterUpdate(components)
        decisions = Decisions(components)
        deferred = DeferredSteps(components, exchange, measurement, decisions, after)
        left_out = LeftOutSteps(components, measurement, after)
        self._components, self._after, self._deferred = components, after, deferred
        self._shutdown = Shutdown(components, deferred, after, remove_log_handler)
        self.graph_capture = GraphCapture(loop.is_main_process)
        self.guard = CallGuard(components, self.graph_capture, self._shutdown.release)
        self._steps = OptimizerSteps(components, measurement, decisions, deferred, left_out, after, self.guard)
        self._batches = Batches(components, measurement, self._steps, deferred, left_out, after)
        self._left_out, self._expected_losses = left_out, ExpectedLosses(components, left_out)
        self._interrupted = InterruptedSteps(components, self._steps, deferred, left_out, self._expected_losses, after)
        components.responses.start()
        fresh = [f"in the checkpoint's state, {line}" for line in components.load_state_dict(state)]
        for line in [*fresh, *lines]:
            logger.warning("gradexplode: %s", line)
        if arguments.clip is not None:
            loop.use_measured_norm(components.clipper.clip_by_measured_norm)
        # Last: a run that could not be built must not be called.
        components.optimizers.listen(self.before_step, self.after_step, self.within_step)

    # What a training loop calls, in the order of a batch.

    batch_expected = never_fatal(Batches.batch_expected, of="_batches")
    batch_started = never_fatal(Batches.batch_started, of="_batches")
    gradients_cleared = never_fatal(Batches.gradients_cleared, of="_batches")
    loss_computed = never_fatal(Batches.loss_computed, of="_batches")
    backward_begins = never_fatal(Batches.backward_begins, of="_batches")
    graph_exists = never_fatal(Batches.graph_exists, of="_batches")
    set_graph = never_fatal(Batches.set_graph, of="_batches")
    backward_ended = never_fatal(Batches.backward_ended, of="_batches")
    gradients_ready = never_fatal(OptimizerSteps.gradients_ready, of="_steps")
    batch_ended = never_fatal(Batches.batch_ended, of="_batches")

    # What the hooks of an optimizer call.

    before_step = never_fatal(OptimizerSteps.before_step, of="_steps")
    within_step = never_fatal(OptimizerSteps.within_step, of="_steps")
    after_step = never_fatal(OptimizerSteps.after_step, of="_steps")

    # Losses and gradients without a step, in loops that announce each loss.

    loss_expected = never_fatal(ExpectedLosses.expect, of="_expected_losses")
    take_nonfinite_losses = never_fatal(ExpectedLosses.take_nonfinite, of="_expected_losses")
    report_nonfinite_losses = never_fatal(ExpectedLosses.report, of="_expected_losses")
    step_left_out = never_fatal(LeftOutSteps.step_left_out, of="_left_out")
    gradients_left_out = never_fatal(LeftOutSteps.report_gradients, of="_left_out")

    def loss_reached(self, graph: object) -> None:
        """Note that a backward pass has reached the loss of a graph."""
        self._expected_losses.reached(graph)

    def has_overflowed(self, optimizer: Optimizer) -> bool:
        """Return whether gradients that were measured at the end of the last backward pass are not finite."""
        return self._components.window.has_overflowed(optimizer)

    # Between batches.

    @never_fatal
    def flush(self) -> None:
        """Read the numbers that were deferred; within a batch, responses to them are called at the next update."""
        self._deferred.read()
        if not self._components.batch.is_open and not self._components.agreement.by_notes:
            self._deferred.settle()
            self._after.end_batch()

    @never_fatal
    def finish_deferred(self) -> None:
        """Finish the steps whose numbers were deferred, between two batches; a collective call."""
        self._deferred.finish()
        self._after.end_batch()

    @never_fatal
    def finish_before_checkpoint(self) -> bool | None:
        """Finish the steps of several processes that were held until the next exchange; a collective call.

        Within a batch, the responses to findings are called at the next update.

        Returns:
            Whether that may have changed weights, optimizers or schedules; None if no step was finished.
        """
        deferred = self._deferred
        if not self._components.agreement.by_notes:
            return None
        deferred.finish(has_effects=False)
        if self._components.batch.is_open or not deferred.unsettled:
            return None
        found_any = deferred.found_any
        deferred.settle()
        self._after.end_batch()
        return found_any

    # Results.

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed and is off."""
        return self.guard.failed

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
        self._after.evaluate_held()
        self._components.reporter.write(self._components.responses.attempts)
        return self.report_folder

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident, None if there was none."""
        self._after.evaluate_held()
        return self._components.diagnoses.current(self._components.responses.attempts)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on, in plain values, with a version."""
        self._after.evaluate_held()
        return self._components.state_dict()

    # The end.

    @never_fatal
    def aborted(self, error: BaseException) -> None:
        """Log what was measured of the steps that an exception has interrupted.

        Args:
            error: The exception.
        """
        try:
            self._interrupted.finish(error)
        except ExplosionError:
            raise
        except Exception as other:  # such as one of the device, which may be what ends the run
            logger.warning(
                "gradexplode: the step that an exception has interrupted could not be read: %s", describe(other)
            )
        self._after.evaluate_held()
        attempts, reporter = self._components.responses.attempts, self._components.reporter
        reporter.publish(attempts)
        reporter.write_steps(attempts)

    def close(self) -> None:
        """Undo all changes to the training loop and its optimizers. Never raises."""
        self._shutdown.close()
