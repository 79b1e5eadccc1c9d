"""The optimizer steps of one run: the methods called before, within and after each step, and its phases.

The gradients of a step are measured (`engine/gradient_measurement.py`), clip value and responses are decided
(`engine/decisions.py`), and, after the optimizer's update, the weights are measured and the step is recorded
(`engine/after_update.py`). On an accelerator, if nothing has to be decided before the update, the numbers are read
later (`engine/deferred_reading.py`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.optim import LBFGS, Optimizer

from lightning_gradexplode.distributed.process_group import ProcessFailedError
from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.calm_step import CalmStep
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.current_results import CurrentResults
from lightning_gradexplode.engine.decisions import Decisions
from lightning_gradexplode.engine.deferred_reading import DeferredReading
from lightning_gradexplode.engine.failure import MONITOR_FAILED, MONITOR_IS_OFF, never_fatal
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.shutdown import Shutdown
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.records import LEFT_OUT
from lightning_gradexplode.records.log import logger


class OptimizerSteps(CurrentResults):
    """Monitors the steps of the optimizers of one training run, until the first failure of the monitor.

    Args:
        components: The components of the run.
        loop: The training loop.
        graph_capture: Detects calls that are captured by a CUDA graph or traced by ``torch.compile``.
        clips: Whether there is a clip policy.
        remove_log_handler: Removes the handler that shows log records in a terminal.

    Attributes:
        failed: Whether the monitor has failed and is off.
        graph_capture: As given.
    """

    def __init__(
        self,
        components: Components,
        loop: TrainingLoop,
        graph_capture: GraphCapture,
        clips: bool,
        remove_log_handler: Callable[[], object],
    ) -> None:
        after = AfterUpdate(components)
        super().__init__(components, after)
        self.failed = False
        self.graph_capture = graph_capture
        self._loop = loop
        self._clips = clips
        self._measurement = GradientMeasurement(components)
        self._decisions = Decisions(components, self._measurement)
        self._left_out = LeftOutSteps(components, self._measurement, after.evaluate_held)
        self._deferred_reading = DeferredReading(components, self._measurement, self._decisions, after)
        self._shutdown = Shutdown(components, self._deferred_reading, after, self, remove_log_handler)
        self._open: Step | None = None
        self._stepped: list[Step] = []
        self._announced: Optimizer | None = None
        self._inside_step = self._has_graph = False
        self._is_within = False  # a step of an optimizer that another one wraps

    def has_overflowed(self, optimizer: Optimizer) -> bool:
        """Return whether gradients that were measured at the end of the last backward pass are not finite."""
        return self._components.window.has_overflowed(optimizer)

    @never_fatal
    def gradients_ready(self, optimizer: Optimizer) -> None:
        """Measure the gradients of the coming step, call the detectors, and decide clip value and response.

        Args:
            optimizer: The optimizer, as the training loop knows it.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        components, state = self._components, self._components.optimizers.state_of(optimizer)
        if state is None:
            return
        self._announced = state.optimizer
        calm = components.calm_steps.open
        if calm is not None and self._inside_step and calm.state is state:
            self._reopen(calm)
        step = self._open
        if step is not None and self._inside_step and step.state is state:
            self._evaluated_again(step)
            return
        self._close_open()
        if components.deferred.batches:
            self._deferred_reading.read()
        if components.responses.adds_gradients and (not components.is_automatic or components.counts_end_of_backward):
            components.responses.gradients_ready(state.optimizer, self._measurement.batch_idx)
        if components.deferred.detected and not components.agreement.by_notes and not self._has_graph:
            self._deferred_reading.settle()
        collected = self._measurement.collect(state)
        if collected is not None:
            self._begin(collected)

    def _begin(self, step: Step) -> None:
        """Read what was measured of a step and prepare its update, or do so later if it can wait."""
        components = self._components
        if step.gathered is not None and components.deferred.found_any(components.agreement):
            self._measurement.exchange.receive(step)
            if components.deferred.found_any(components.agreement):  # on all processes then
                self._deferred_reading.settle()
        if not step.parameters.on_host and self._deferred_reading.can_wait(step):
            if step.reading.gradients.any or step.gathered is not None:  # another process may have gradients
                self._deferred_reading.start_update(step)
                self._open = step
        elif self._measurement.read(step):
            if components.deferred.detected:
                self._deferred_reading.settle()
            self._open = step
            self._decisions.prepare_update(step)
        elif step.loss is not None and not math.isfinite(step.loss) and not components.is_distributed:
            # The user's own hook has removed all gradients.
            self._left_out.report(replace(step.record(), skipped_by=LEFT_OUT), step.inputs)

    @never_fatal
    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prevent, in an optimizer's pre-step hook, an update that is held back."""
        if self._components.acts:
            self._components.responses.step_begins(optimizer)
        policy = self._components.optimizers.policy_of(optimizer) if self._clips else None
        if policy is not None:
            policy.step_begins(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._evaluated(optimizer)
            return None
        self._close_open()  # an earlier step of the same batch, which a gradient scaler has skipped
        self._inside_step, self._is_within = True, False

        # With a closure, the forward pass, the backward pass and `gradients_ready` are called inside the step.
        def evaluate(*arguments: Any, **named: Any) -> Any:  # some optimizers pass arguments
            self._announced = None
            result = closure(*arguments, **named)
            self._evaluated(optimizer, in_closure=not self._is_within)
            return result

        return args[:1], {**kwargs, "closure": evaluate}

    @never_fatal
    def within_step(self, optimizer: Optimizer) -> None:
        """Prevent an update that is held back, right before an optimizer that is wrapped makes it."""
        self._is_within = True
        self._evaluated(optimizer)

    @never_fatal
    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the update, in an optimizer's post-step hook."""
        self._inside_step, self._announced = False, None
        policy = self._components.optimizers.policy_of(optimizer) if self._clips else None
        if policy is not None:
            policy.step_ended(optimizer)
        if self._components.acts:
            self._components.responses.step_ended(optimizer)
        calm, step = self._components.calm_steps.open, self._open
        is_its = calm is not None and calm.state.optimizer is optimizer and not calm.update_taken  # else by one within
        if calm is not None and is_its and not self._components.calm_steps.stepped(calm):
            step = self._reopen_after_update(calm)
        if step is not None and step.state.optimizer is optimizer:
            step.state.evaluations = step.evaluations
            self._after.measure(step)
            self._close(step)

    # The phases of one step.

    @never_fatal
    def _evaluated(self, optimizer: Optimizer, in_closure: bool = False) -> None:
        """Hold back an update right before it, if that was decided; decide now if `gradients_ready` was not called.

        Args:
            optimizer: The optimizer.
            in_closure: Whether its gradients were computed by its closure, which it may call again before the update.
        """
        state = self._components.optimizers.state_of(optimizer) if in_closure else None
        if state is not None:
            state.uncleared_evaluations = max(
                state.uncleared_evaluations, self._components.window.passes.evaluated(state.parameters())
            )
        if self._announced is not optimizer:  # a step that was begun on an optimizer that the loop does not know
            self.gradients_ready(optimizer)
        components, calm = self._components, self._components.calm_steps.open
        if calm is not None and components.acts and components.may_change_gradients and not calm.holds_gradients:
            self._reopen(calm)
        step = self._open
        if step is not None and step.state.optimizer is optimizer and not self.failed:
            self._decisions.hold_back(step, in_closure)

    def _reopen(self, calm: CalmStep) -> None:
        """Treat a calm step as any other, since its gradients have changed."""
        self._components.calm_steps.open = None
        self._begin(self._measurement.reopen(calm))

    def _reopen_after_update(self, calm: CalmStep) -> Step:
        """Treat a calm step as any other, since its update has changed the weights more than usual."""
        self._components.calm_steps.open = None
        step = self._open = self._measurement.reopen(calm)
        self._measurement.read(step)
        self._decisions.decide(step, before_update=False)
        return step

    def _evaluated_again(self, step: Step) -> None:
        """Measure the gradients of a further evaluation of a closure within the same step.

        For a line search the gradients of the step are the first ones; any other optimizer, such as sharpness-aware
        minimization, updates by the last ones.
        """
        step.evaluations += 1
        self._components.window.discard_losses()
        if isinstance(step.state.optimizer, LBFGS):
            self._decisions.look_again(step)
        else:
            self._decisions.measure_again(step)
        self._decisions.clip(step, first=False)

    def _close_open(self) -> None:
        """End the step that is open, if there is one."""
        if self._components.calm_steps.open is not None:
            self._components.calm_steps.close()
        if self._open is not None:
            self._close(self._open)

    def _close(self, step: Step) -> None:
        """End the open step. Its weights are measured by now, and it is finished at the end of its batch."""
        if step.phase is Phase.MEASURED:  # its optimizer was never called
            self._decisions.decide(step, before_update=False)
        if self._clips:
            self._components.clipper.forget()
        if step.is_guarded:
            self._components.guard.disarm(step)
        if not step.state.has_hooks:
            self._after.measure(step)  # the loop has called the optimizer by now
        self._stepped.append(step)
        self._open = None

    # Failure.

    def fail(self, call: str) -> None:
        """Switch the monitor off after an error in one of its calls, log it, and restore the training loop."""
        self.failed = True
        error = sys.exc_info()[1]
        if isinstance(error, ProcessFailedError):
            logger.warning(MONITOR_IS_OFF, f"{error}; the training goes on")
        else:
            logger.exception(MONITOR_FAILED)
        self._shutdown.release()

    def announce_failure(self, call: str) -> None:
        """Participate once in the next exchange, so that the other processes learn of the failure."""
        try:
            self._withdraw(call)
        except Exception as error:  # such as that of a process that has ended
            logger.debug("gradexplode: the failure could not be reported to the other processes: %s", error)

    def _withdraw(self, call: str) -> None:
        if call == "gradients_ready":
            self._components.exchange.withdraw(packs_gradients=True)
        elif call == "batch_ended" and not self._components.is_automatic:
            self._components.exchange.withdraw(packs_gradients=False)
        elif call.startswith("finish_") or (call == "batch_ended" and self._loop.is_last_batch):
            self._components.agreement.withdraw_notes()
