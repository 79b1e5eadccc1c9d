"""The batches of one training run: the methods that a training loop calls in each batch, in that order.

Those that it calls for each step of an optimizer are in `engine/optimizer_steps.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_gradexplode.engine.accumulation import host_number
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.failure import never_fatal
from lightning_gradexplode.engine.left_out import Expected, left_out_record
from lightning_gradexplode.engine.optimizer_steps import OptimizerSteps
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.engine.unseen_steps import UnseenSteps
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.records import StepRecord

_phase = operator.attrgetter("phase")
_scalars_due = operator.attrgetter("scalars_due")


class Batches(OptimizerSteps):
    """Monitors the batches of one training run.

    Args:
        components: The components of the run.
        loop: The training loop.
        graph_capture: Detects calls that are captured by a CUDA graph or traced by ``torch.compile``.
        clips: Whether there is a clip policy.
        remove_log_handler: Removes the handler that shows log records in a terminal.
    """

    def __init__(
        self,
        components: Components,
        loop: TrainingLoop,
        graph_capture: GraphCapture,
        clips: bool,
        remove_log_handler: Callable[[], object],
    ) -> None:
        super().__init__(components, loop, graph_capture, clips, remove_log_handler)
        self._unseen = UnseenSteps(loop) if loop.may_step_unseen else None
        self._in_batch = self._end_is_due = self._is_unannounced = False
        self._unused: tuple[StepRecord, StepInputs | None] | None = None
        self._number, self._has_loss = loop.step, False

    @never_fatal
    def batch_expected(self) -> None:
        """Attach hooks for the error gradients of modules before the forward pass, if they are due.

        For loops in which a batch is known to have begun only when its forward pass is over.
        """
        if self._modules_are_due(self._components.schedule.due(self._loop.step)[1]):
            self._components.module_gradients.attach(self._loop.loss_scale()[0])

    @never_fatal
    def batch_started(self, batch: Any, batch_idx: int, forward_is_over: bool = False) -> None:
        """Begin a batch.

        Args:
            batch: The batch.
            batch_idx: Its index.
            forward_is_over: Whether its forward pass was computed already, after a call of `batch_expected`.
        """
        components, number = self._components, self._loop.step
        self._measurement.batch_idx, self._announced, self._inside_step = batch_idx, None, False
        self._in_batch, self._number, self._has_loss = True, number, False
        components.optimizers.refresh()
        if self._unseen is not None:
            self._unseen.batch_started()
        scalars_due, histograms_due = components.schedule.due(number)
        due = self._measurement.module_gradients_due = self._modules_are_due(histograms_due)
        components.evidence.batch_started(batch, batch_idx, scalars_due)
        self._is_unannounced = forward_is_over
        if forward_is_over:
            if not due:
                components.module_gradients.detach()
        elif due and (not components.is_automatic or self._loop.completes_step(batch_idx)):
            components.module_gradients.attach(self._loop.loss_scale()[0])

    def _modules_are_due(self, histograms_due: bool) -> bool:
        components = self._components
        return histograms_due or (components.schedule.has_histograms and components.optimizers.are_new)

    @never_fatal
    def gradients_cleared(self) -> None:
        """Read the numbers of the step before, if they were deferred, before its gradients are cleared."""
        self._components.window.gradients_cleared()
        if self._components.deferred.batches:
            self._deferred_reading.read()

    @never_fatal
    def loss_computed(self, loss: Tensor, has_graph: bool = False) -> None:
        """Add the loss of a micro-batch.

        In manual optimization the loss is the value that ``training_step`` returns. Losses of single backward passes,
        which may be of different networks, are used only if they are not finite and nothing is returned.

        Args:
            loss: The loss.
            has_graph: Whether its backward pass is about to begin.
        """
        components, value = self._components, host_number(loss)
        self._has_loss = True
        if has_graph and value is not None and not (components.graphs.is_calm and math.isfinite(value)):
            components.graphs.read(loss, value)
        if self._unused is not None:
            self._report_unused_loss()
        if components.is_automatic:
            self._unused = None  # else its gradients are those of a later step, too
            components.window.add_loss(loss, value)
        elif value is not None and not math.isfinite(value) and self._loop.loss_scale()[0] is None:
            self._unused = left_out_record(self._number, self._measurement.batch_idx, value), components.evidence.inputs
        if has_graph or len(components.optimizers.states) == 1:
            components.window.passes.begins(components.optimizers.states)

    # Losses and gradients without a step.

    @never_fatal
    def loss_expected(self, loss: Tensor, graph: object) -> None:
        """Note a loss that a backward pass is expected of.

        Args:
            loss: The loss.
            graph: An object that lives as long as the graph of the loss.
        """
        self._left_out.expect(loss, graph, self._measurement.batch_idx)

    def loss_reached(self, graph: object) -> None:
        """Note that a backward pass has reached the loss of a graph."""
        self._left_out.reached(graph)

    @never_fatal
    def take_nonfinite_losses(self, are_over: bool = False) -> Sequence[Expected]:
        """Remove and return the losses that are not finite and that no backward pass can reach any more.

        Args:
            are_over: Whether no backward pass will follow, whatever is still in memory.
        """
        return self._left_out.take_nonfinite_losses(are_over)

    @never_fatal
    def report_nonfinite_losses(self, losses: Sequence[Expected]) -> None:
        """Report losses that are not finite and that no backward pass has reached."""
        self._left_out.report_nonfinite_losses(losses)

    @never_fatal
    def gradients_left_out(self, are_over: bool = False) -> None:
        """Report gradients that are not finite and that the loop has cleared without an optimizer step.

        Args:
            are_over: Whether no step will follow, whether or not they are cleared.
        """
        self._left_out.report_gradients(are_over)

    # Backward passes.

    @never_fatal
    def backward_begins(self) -> None:
        """Detect whether the gradients were cleared; for loops whose losses are known after the backward pass."""
        window, states = self._components.window, self._components.optimizers.states
        window.passes.begins(states)
        if len(states) == 1:
            window.look_for_changes(states[0].optimizer, states[0].parameters())

    @never_fatal
    def graph_exists(self, loss: Tensor) -> None:
        """Read the graph of a loss before its backward pass, if the value of the loss is on the host."""
        value = host_number(loss)
        if value is not None:
            self._components.graphs.read(loss, value)

    @never_fatal
    def backward_ended(self) -> None:
        """Measure the gradients, if all micro-batches are accumulated and nothing changes them before the step."""
        components = self._components
        components.window.passes.ended(components.optimizers.states)
        self._left_out.backward = self._measurement.batch_idx, components.evidence.inputs
        if self._is_unannounced and self._measurement.module_gradients_due:  # a further micro-batch may follow
            components.module_gradients.pass_ended()
        if self._unseen is not None:
            self._unseen.backward_ended()
        if not components.is_automatic:
            if self._open is None:  # the user may clip before the step
                for state in components.optimizers.states:
                    self._measurement.measure_early(state)
            return
        is_complete = self._loop.completes_step(self._measurement.batch_idx)
        if components.counts_end_of_backward or not is_complete:  # a further micro-batch may follow
            components.evidence.micro_batch_ended(components.window.newest_loss)
        if not is_complete:
            return
        for state in components.optimizers.states:
            if components.responses.adds_gradients and not components.counts_end_of_backward:
                components.responses.gradients_ready(state.optimizer, self._measurement.batch_idx)
            if self._open is None and (components.gradients_are_final or self._loop.may_clip_by_itself):
                self._measurement.measure_early(state)

    @never_fatal
    def batch_ended(self, outputs: Any = None) -> None:
        """Finish the steps of a batch.

        Args:
            outputs: The return value of ``training_step``, if losses are not known otherwise.

        Raises:
            ExplosionError: The run explodes and a response raises it.
        """
        if self._measurement.module_gradients_due:
            self._components.module_gradients.detach()
        is_calm = self._components.calm_steps.end_batch()
        if is_calm and (self._components.acts or self._components.calm_steps.findings):
            self._after.end_calm()
        if self._open is not None:
            self._close(self._open)
        steps, self._stepped = self._stepped, []
        if self._unseen is not None:
            self._unseen.batch_ended(is_calm or bool(steps))
        if not steps and not is_calm and self._in_batch:
            self._report_left_out(outputs)
        self._in_batch, self._left_out.backward = False, None
        if is_calm and not steps:
            self._components.evidence.inputs = None
            if self._components.acts:
                self._end_batch()
            return  # no finding has consequences
        if not self._components.is_automatic:
            loss = self._take_unused_loss(steps)
            self._after.set_returned_loss(steps, outputs, self._measurement.batch_idx, loss)
        self._components.evidence.inputs = None
        if any(map(_scalars_due, steps)):
            self._after.set_logged_scalars(steps)
        deferred, agreement = self._components.deferred, self._components.agreement
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

    def _take_unused_loss(self, steps: Sequence[Step]) -> float | None:
        """Return the loss of a backward pass that is not finite, unless it belongs to a later step or to none."""
        if self._unused is None or not steps:
            return None
        if self._left_out.overflowed_early() and all(math.isfinite(step.grad_norm or 0.0) for step in steps):
            return None  # its gradients wait for another optimizer
        loss, self._unused = self._unused[0].loss, None
        return loss

    def _report_unused_loss(self) -> None:
        """Report a loss that is not finite once the gradients of its backward pass are cleared without a step."""
        if self._unused is not None and self._left_out.are_cleared():
            unused, self._unused = self._unused, None
            self._left_out.report(*unused)

    def _report_left_out(self, outputs: Any) -> None:
        """Report a batch without a step whose loss or gradients are not finite, unless a later batch completes it."""
        self._report_unused_loss()
        if not self._has_loss:
            self._left_out.report_batch(self._number, self._measurement.batch_idx, outputs)
        elif self._loop.completes_step(self._measurement.batch_idx):
            self._left_out.report_gradients()
            components, loss = self._components, self._components.window.unused_loss
            if (
                components.is_automatic
                and not components.counts_end_of_backward
                and loss is not None
                and not math.isfinite(loss)
            ):
                self._unused = (
                    left_out_record(self._number, self._measurement.batch_idx, loss),
                    components.evidence.inputs,
                )

    def _end_batch(self, is_deferred: bool = False) -> None:
        """End a batch, after the running backward pass if there is one."""
        if self._has_graph:
            self._end_is_due = True
        else:
            self._after.end_batch(is_deferred)

    @never_fatal
    def set_graph(self, exists: bool) -> None:
        """Set whether a backward pass is running, during which the end of the previous batch may become known.

        Responses must not change weights and buffers meanwhile; they are called once the pass is over.
        """
        self._has_graph = exists
        if self._end_is_due and not exists:
            self._end_is_due = False
            self._after.end_batch(is_deferred=True)  # the next forward pass has changed the buffers
