"""The optimizer steps of one run: what is called before, within and after each step, and its phases.

The gradients of a step are measured (`engine/gradient_measurement.py`), clip value and responses are decided
(`engine/decisions.py`), and, after the optimizer's update, the weights are measured and the step is recorded
(`engine/after_update.py`). On an accelerator, if nothing has to be decided before the update, the numbers are read
later (`engine/deferred_steps.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch.optim import LBFGS, Optimizer

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.decisions import Decisions
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.failure import CallGuard, never_fatal
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.missing_steps import MissingSteps
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.engine.steps_without_gradients import StepsWithoutGradients
from lightning_gradexplode.records import LEFT_OUT


class OptimizerSteps:
    """Takes the steps of the optimizers of a run through their phases.

    Args:
        components: The components of the run.
        measurement: Measures the gradients of a step.
        decisions: Decides about it before its update.
        deferred: Holds it if its numbers are read later.
        left_out: Reports it if the optimizer does not step.
        after: What happens to it after its update.
        guard: Guards the calls from closures.

    Attributes:
        open: The step in progress, from its measurement until the next step or the end of its batch; None without one,
            and for calm steps, of which `CalmSteps` has its own.
        missing: The steps that this process leaves out and others make.
    """

    def __init__(
        self,
        components: Components,
        measurement: GradientMeasurement,
        decisions: Decisions,
        deferred: DeferredSteps,
        left_out: LeftOutSteps,
        after: AfterUpdate,
        guard: CallGuard,
    ) -> None:
        self.open: Step | None = None
        self.guard = guard
        self.missing = MissingSteps(components)
        self._without_gradients = StepsWithoutGradients(components.loop)
        self._components = components
        self._measurement = measurement
        self._decisions = decisions
        self._deferred = deferred
        self._left_out = left_out
        self._after = after
        self._clips = components.arguments.clip is not None
        self._compares_at_measurement = components.counts_end_of_backward and components.loop.loss_scale()[0] is None
        self._stepped: list[Step] = []  # those of the current batch that are no longer open
        self._announced: Optimizer | None = None  # the optimizer of the last call of `gradients_ready`
        self._inside_step = False  # whether an optimizer has begun a step with a closure
        self._is_within = False  # whether an optimizer that another one wraps makes the step

    def begin_batch(self) -> None:
        """Begin a batch; the last step of the one before may have been interrupted."""
        self._announced, self._inside_step = None, False

    def take(self, decides: bool = True) -> list[Step]:
        """End the step that is open, and remove and return the steps of the current batch.

        Args:
            decides: Whether detectors and responses may be called still, which may need the other processes.
        """
        step = self.open
        if step is not None:
            if step.phase is Phase.MEASURED and not decides:
                step.phase = Phase.DECIDED
            self._close(step)
        steps, self._stepped = self._stepped, []
        return steps

    def gradients_ready(self, optimizer: Optimizer) -> None:
        """Measure the gradients of the coming step, call the detectors, and decide clip value and response.

        Args:
            optimizer: The optimizer, as the training loop knows it.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        components, deferred = self._components, self._deferred
        state = components.optimizers.state_of(optimizer)
        if state is None:
            return
        if components.is_distributed:
            self.missing.step_begins()
        self._announced = state.optimizer
        calm = components.calm_steps.open
        if calm is not None and self._inside_step and calm.state is state:
            self._reopen()
        step = self.open
        if step is not None and self._inside_step and step.state is state:
            self._evaluated_again(step)
            return
        if step is not None or components.calm_steps.open is not None:
            self._close_open()
        if deferred.unread:
            deferred.read()
        if components.responses.adds_gradients and (not components.is_automatic or components.counts_end_of_backward):
            components.responses.gradients_ready(state.optimizer, components.batch.index)
        if deferred.unsettled:
            deferred.settle_unless_too_early()
        collected = self._measurement.collect(state)
        if collected is not None:
            self._begin(collected)

    def _begin(self, step: Step) -> None:
        """Read what was measured of a step and prepare its update, or do so later if it can wait."""
        deferred = self._deferred
        if deferred.unsettled:
            deferred.settle_by_exchange(step)
        if not step.parameters.on_host and deferred.can_wait(step):
            if step.reading.gradients.any or step.on_device.gathered is not None:  # another process may have gradients
                deferred.start_update(step)
                self.open = step
        elif self._measurement.read(step):
            if deferred.unsettled:
                deferred.settle()
            self.open = step
            self._decisions.prepare_update(step)
        elif step.loss is not None and not math.isfinite(step.loss):  # the user's own hook has removed all gradients
            self._left_out.report(replace(step.record(), skipped_by=LEFT_OUT), step.inputs)
        else:
            self._without_gradients.add(is_any_recorded=self._after.last is not None)

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
        if self.open is not None or self._components.calm_steps.open is not None:
            self._close_open()  # an earlier step of the same batch, which a gradient scaler has skipped
        self._inside_step, self._is_within = True, False

        # With a closure, the forward pass, the backward pass and `gradients_ready` are called inside the step.
        def evaluate(*arguments: Any, **named: Any) -> Any:  # some optimizers pass arguments
            self._announced = None
            result = closure(*arguments, **named)
            self._evaluated_guarded(optimizer, in_closure=not self._is_within)
            return result

        return args[:1], {**kwargs, "closure": evaluate}

    def within_step(self, optimizer: Optimizer) -> None:
        """Prevent an update that is held back, right before an optimizer that is wrapped makes it."""
        self._is_within = True
        self._evaluated(optimizer)

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the update, in an optimizer's post-step hook."""
        self._inside_step, self._announced = False, None
        policy = self._components.optimizers.policy_of(optimizer) if self._clips else None
        if policy is not None:
            policy.step_ended(optimizer)
        if self._components.acts:
            self._components.responses.step_ended(optimizer)
        calm, step = self._components.calm_steps.open, self.open
        is_its = calm is not None and calm.state.optimizer is optimizer and not calm.update_taken  # else by one within
        if calm is not None and is_its and not self._components.calm_steps.stepped(calm):
            step = self._reopen_after_update()
        if step is not None and step.state.optimizer is optimizer:
            step.state.evaluations = step.evaluations
            self._after.measure(step)
            self._close(step)

    # The phases of one step.

    def _evaluated(self, optimizer: Optimizer, in_closure: bool = False) -> None:
        """Hold back an update right before it, if that was decided; decide now if `gradients_ready` was not called.

        Args:
            optimizer: The optimizer.
            in_closure: Whether its gradients were computed by its closure, which it may call again before the update.
        """
        if in_closure:
            self._count_evaluation(optimizer)
        if self._announced is not optimizer:  # a step that was begun on an optimizer that the loop does not know
            self.gradients_ready(optimizer)
        components, calm = self._components, self._components.calm_steps.open
        if calm is not None and components.acts and components.may_change_gradients and not calm.holds_gradients:
            self._reopen()
        step = self.open
        if components.may_change_gradients and (in_closure or not self._compares_at_measurement):
            self._look_for_removed(optimizer)
        if step is not None and step.state.optimizer is optimizer:
            self._decisions.hold_back(step, in_closure)

    def _look_for_removed(self, optimizer: Optimizer) -> None:
        """Log gradients that were measured and that the user's own code has removed right before the update."""
        step = self._components.calm_steps.open or self.open
        if step is not None and step.state.optimizer is optimizer and step.reading is not None:
            self._components.window.removed.look(step.reading.gradients, step.parameters)

    _evaluated_guarded = never_fatal(_evaluated)  # for closures, which an optimizer calls

    def _count_evaluation(self, optimizer: Optimizer) -> None:
        """Note how often the gradients were computed by a closure since they were cleared."""
        step = self._components.calm_steps.open or self.open
        if step is not None and step.state.optimizer is optimizer:
            state, parameters = step.state, step.parameters
        else:
            found = self._components.optimizers.state_of(optimizer)
            if found is None:
                return
            state, parameters = found, found.parameters()
        count = self._components.window.passes.evaluated(parameters)
        state.uncleared_evaluations = max(state.uncleared_evaluations, count)

    def _reopen(self) -> None:
        """Treat the calm step in progress as any other, since its gradients have changed."""
        self._begin(self._measurement.reopen(self._components.calm_steps.take_open()))

    def _reopen_after_update(self) -> Step:
        """Treat the calm step in progress as any other, since its update has changed the weights more than usual."""
        step = self.open = self._measurement.reopen(self._components.calm_steps.take_open())
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
            self._decisions.check_changed_gradients(step)
        else:
            self._decisions.measure_again(step)
        self._decisions.clip(step, first=False)

    def _close_open(self) -> None:
        """End the step that is open, if there is one."""
        if self._components.calm_steps.open is not None:
            self._components.calm_steps.close()
        if self.open is not None:
            self._close(self.open)

    def _close(self, step: Step) -> None:
        """End the open step. Its weights are measured by now, and it is finished at the end of its batch."""
        if step.phase is Phase.MEASURED:  # its optimizer was never called
            self._decisions.decide(step, before_update=False)
        if self._clips:
            self._components.clipper.forget()
        if step.on_device.is_guarded:
            self._components.device_guard.disarm(step)
        if not step.state.has_hooks:
            self._after.measure(step)  # the loop has called the optimizer by now
        self._stepped.append(step)
        self.open = None
