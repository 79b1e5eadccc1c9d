"""The batches of one training run: what a training loop calls in each batch, in that order.

What it calls for each step of an optimizer is in `engine/optimizer_steps.py`.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor

from lightning_gradexplode.diagnose.graph import Loss
from lightning_gradexplode.engine.accumulation import host_number
from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.left_out import LeftOutSteps
from lightning_gradexplode.engine.optimizer_steps import OptimizerSteps
from lightning_gradexplode.engine.step import Phase
from lightning_gradexplode.engine.unseen_steps import UnseenSteps

_phase = operator.attrgetter("phase")
_scalars_due = operator.attrgetter("scalars_due")


class Batches:
    """Monitors the batches of one training run.

    Args:
        components: The components of the run.
        measurement: Measures gradients at the end of a backward pass.
        steps: The optimizer steps of a batch.
        deferred: The steps whose numbers are read later.
        left_out: Reports batches without a step.
        after: Finishes the steps of a batch.
    """

    def __init__(
        self,
        components: Components,
        measurement: GradientMeasurement,
        steps: OptimizerSteps,
        deferred: DeferredSteps,
        left_out: LeftOutSteps,
        after: AfterUpdate,
    ) -> None:
        loop = components.loop
        self._components = components
        self._batch = components.batch
        self._loop = loop
        self._measurement = measurement
        self._steps = steps
        self._deferred = deferred
        self._left_out = left_out
        self._after = after
        self._unseen = UnseenSteps(loop) if loop.may_step_unseen else None
        self._is_unannounced = False  # whether the forward pass was over when the batch began
        self._end_is_due = False  # whether a batch has ended during a backward pass

    # Before and in the forward pass.

    def batch_expected(self) -> None:
        """Attach hooks for the error gradients of modules before the forward pass, if they are due.

        For loops in which a batch is known to have begun only when its forward pass is over.
        """
        components = self._components
        _, histograms_due = components.schedule.due(self._loop.step)
        if histograms_due or (components.schedule.has_histograms and components.optimizers.are_new):
            components.module_gradients.attach(self._loop.loss_scale()[0])

    def batch_started(self, batch: Any, batch_idx: int, forward_is_over: bool = False) -> None:
        """Begin a batch.

        Args:
            batch: The batch.
            batch_idx: Its index.
            forward_is_over: Whether its forward pass was computed already, after a call of `batch_expected`.
        """
        components, current, number = self._components, self._batch, self._loop.step
        current.index, current.number, current.is_open, current.has_loss = batch_idx, number, True, False
        self._is_unannounced = forward_is_over
        self._steps.begin_batch()
        components.optimizers.refresh()
        if self._unseen is not None:
            self._unseen.batch_started()
        scalars_due, histograms_due = components.schedule.due(number)
        current.measures_modules = histograms_due or (
            components.schedule.has_histograms and components.optimizers.are_new
        )
        components.evidence.batch_started(batch, batch_idx, scalars_due)
        if forward_is_over:
            if not current.measures_modules:
                components.module_gradients.detach()
        elif current.measures_modules and (not components.is_automatic or self._loop.completes_step(batch_idx)):
            components.module_gradients.attach(self._loop.loss_scale()[0])

    def gradients_cleared(self) -> None:
        """Read the numbers of the step before, if they were deferred, before its gradients are cleared."""
        self._components.window.gradients_cleared()
        if self._deferred.unread:
            self._deferred.read()

    def loss_computed(self, loss: Tensor, has_graph: bool = False) -> None:
        """Add the loss of a micro-batch.

        In manual optimization the loss is the value that ``training_step`` returns. Losses of single backward passes,
        which may be of different networks, are used only if they are not finite and nothing is returned.

        Args:
            loss: The loss.
            has_graph: Whether its backward pass is about to begin.
        """
        components, value = self._components, host_number(loss)
        if has_graph and components.is_distributed:
            self._steps.missing.pass_begins()
        self._batch.has_loss = True
        if has_graph and not (components.graphs.is_calm and (value is None or math.isfinite(value))):
            components.graphs.read(loss, value)
        if self._left_out.unused_loss is not None:
            self._left_out.next_loss()
        if components.is_automatic:
            components.window.add_loss(loss, value)
        elif value is not None and not math.isfinite(value) and self._loop.loss_scale()[0] is None:
            self._left_out.keep_unused_loss(value)
        if has_graph or len(components.optimizers.states) == 1:
            components.window.passes.begins(components.optimizers.states)

    # Backward passes.

    def backward_begins(self) -> None:
        """Detect whether the gradients were cleared; for loops whose losses are known after the backward pass."""
        window, states = self._components.window, self._components.optimizers.states
        if self._components.is_distributed:
            self._steps.missing.pass_begins()
        window.passes.begins(states)
        if len(states) == 1:
            window.look_for_changes(states[0].optimizer, states[0].parameters())

    def graph_exists(self, loss: Loss) -> None:
        """Read the graph of a loss before its backward pass, if it is of interest."""
        graphs, value = self._components.graphs, host_number(loss.detach())
        if not graphs.is_calm or (value is not None and not math.isfinite(value)):
            graphs.read(loss, value)

    def backward_ended(self) -> None:
        """Measure the gradients, if all micro-batches are accumulated and nothing changes them before the step."""
        components, batch = self._components, self._batch
        components.window.passes.ended(components.optimizers.states)
        if components.is_distributed:
            self._steps.missing.pass_ended()
        batch.last_backward = batch.index, components.inputs.current
        if self._is_unannounced and batch.measures_modules:  # a further micro-batch may follow
            components.module_gradients.pass_ended()
        if self._unseen is not None:
            self._unseen.backward_ended()
        if not components.is_automatic:
            if self._steps.open is None:  # the user may clip before the step
                for state in components.optimizers.states:
                    self._measurement.measure_early(state)
            return
        is_complete = self._loop.completes_step(batch.index)
        if components.counts_end_of_backward or not is_complete:  # a further micro-batch may follow
            components.inputs.micro_batch_ended(components.window.newest_loss)
        if not is_complete:
            return
        for state in components.optimizers.states:
            if components.responses.adds_gradients and not components.counts_end_of_backward:
                components.responses.gradients_ready(state.optimizer, batch.index)
            if self._steps.open is None and (components.gradients_are_final or self._loop.may_clip_by_itself):
                self._measurement.measure_early(state)

    def set_graph(self, exists: bool) -> None:
        """Set whether a backward pass is running, during which the end of the previous batch may become known.

        Responses must not change weights and buffers meanwhile; they are called once the pass is over.
        """
        self._deferred.graph_exists = exists
        if self._end_is_due and not exists:
            self._end_is_due = False
            self._after.end_batch(is_deferred=True)  # the next forward pass has changed the buffers

    # The end.

    def batch_ended(self, outputs: Any = None) -> None:
        """Finish the steps of a batch.

        Args:
            outputs: The return value of ``training_step``, if losses are not known otherwise.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        components, batch = self._components, self._batch
        if batch.measures_modules:
            components.module_gradients.detach()
        is_calm = components.calm_steps.end_batch()
        if is_calm and (components.acts or components.calm_steps.findings):
            self._after.end_calm()
        steps = self._steps.take()
        if self._unseen is not None:
            self._unseen.batch_ended(is_calm or bool(steps))
        if not steps and not is_calm and batch.is_open:
            self._left_out.report_batch(outputs)
        batch.is_open, batch.last_backward = False, None
        if is_calm and not steps:
            components.inputs.current = None
            if components.acts:
                self._end()
            return  # no finding has consequences
        if not components.is_automatic:
            loss = self._left_out.take_unused_loss(steps) if steps else self._left_out.value_of_unused_loss
            self._after.set_returned_loss(steps, outputs, loss)
        components.inputs.current = None
        if any(map(_scalars_due, steps)):
            self._after.set_logged_scalars(steps)
        deferred, agreement = self._deferred, components.agreement
        is_deferred = Phase.COLLECTING in map(_phase, steps)
        if is_deferred:
            deferred.hold(steps)
        else:
            if deferred.unsettled:
                deferred.settle_unless_too_early()
            self._after.finish(steps)
        is_any = deferred.unread or deferred.unsettled or (agreement.by_notes and agreement.needs_notes)
        if is_any and self._loop.is_last_batch:
            deferred.finish()
            is_deferred = False
        self._end(is_deferred)

    def _end(self, is_deferred: bool = False) -> None:
        """End a batch, after the running backward pass if there is one."""
        if self._deferred.graph_exists:
            self._end_is_due = True
        else:
            self._after.end_batch(is_deferred)
