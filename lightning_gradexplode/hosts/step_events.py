"""Calls of the engine at the events of a training loop of plain PyTorch.

Such a loop does not report that a batch begins or that an optimizer is about to step. The events are therefore the
hooks around an optimizer's step, and the beginning and the end of the backward pass of a tensor that was passed to
`StepEvents.expect_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.diagnose.graph import ReleasedLoss
from lightning_gradexplode.hosts.backward_passes import BackwardPasses
from lightning_gradexplode.hosts.loop_run import LoopRun
from lightning_gradexplode.hosts.torch_loop import TorchLoop
from lightning_gradexplode.hosts.unannounced_steps import UnannouncedSteps

TRACED = (
    "loss() or batch() is called inside of a function that torch.compile compiles, where it does nothing: without "
    "loss(), the gradients are measured as the optimizer gets them, after any clipping, and the loss is unknown; call "
    "them outside of that function"
)
"""What is logged once where the monitor is called in compiled code."""


class _GraphLifetime:
    """Lives as long as the hook of a loss that holds it, and thus as the loss's graph.

    The hook itself, which would have to refer to itself, would live until Python's garbage collector runs.
    """


class StepEvents(LoopRun):
    """Calls the engine at the events of a training loop of plain PyTorch.

    A batch ends when each optimizer has stepped in it, or one steps again.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from.
        at_error: Called before an `ExplosionError` ends the loop, where the loop itself does not close the monitor.
    """

    def __init__(
        self,
        arguments: Arguments,
        loop: TorchLoop,
        state: Mapping[str, Any],
        at_error: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._batch_idx = -1
        self._marks_batches = self._in_batch = False
        self._stepped: set[int] = set()
        self._unannounced = UnannouncedSteps(loop.late_measurement, self.warn_once)
        self._backward = BackwardPasses(
            lambda: loop.optimizers, self._backward_begins, self._backward_ended, self._guarded
        )
        self._evaluating: Optimizer | None = None
        self._awaiting: set[int] = set()
        self._is_moved = False
        self._scaler_version: int | None = None
        super().__init__(arguments, loop, state, at_error)

    # Called by a host.

    def batch_begins(self, batch: Any) -> None:
        """Begin a batch, or a micro-batch, that is known."""
        if self._hooks_are_off():
            return
        self._marks_batches = True
        self._guarded(self._start_batch, batch, True)

    def expect_loss(self, loss: Tensor, value: Callable[[int, Tensor], Tensor | None]) -> None:
        """Measure the gradients at the end of the backward pass of a loss, and report it if none follows and it is NaN.

        Args:
            loss: The loss.
            value: As in `expect_backward`.
        """
        if self._hooks_are_off():
            return
        self._guarded(self._report_nonfinite_losses)
        self._guarded(self._record_left_out_steps_before_loss)

        graph = _GraphLifetime()

        def reached(index: int, gradient: Tensor) -> Tensor | None:
            self._begun.loss_reached(graph)
            return value(index, gradient)

        self.expect_backward([loss], reached)
        self._begun.loss_expected(loss, graph)

    def _report_nonfinite_losses(self, are_over: bool = False) -> None:
        """Report losses that are not finite, and that the loop runs no backward pass of."""
        losses = self._begun.take_nonfinite_losses(are_over)
        if losses:
            if not self._in_batch:
                self._start_batch(None, False)
            self._begun.report_nonfinite_losses(losses)

    def expect_backward(self, tensors: Sequence[Tensor], loss: Callable[[int, Tensor], Tensor | None]) -> None:
        """Measure the gradients at the end of the next backward pass through any of some tensors.

        Args:
            tensors: Results of a forward pass that require gradients.
            loss: Returns a loss of the pass, multiplied by the scale of the gradient scaler, from the index of a
                tensor that the backward pass has reached and the gradient there; None if it is unknown.
        """
        if self._hooks_are_off():
            return

        # A hook that held its tensor would keep the graph of the step; the loop itself may not hold it any more.
        numbers = [one.detach() if one.numel() == 1 else None for one in tensors]

        def loss_with_graph(index: int, gradient: Tensor) -> Tensor | None:
            value, number = loss(index, gradient), numbers[index]
            if value is not None and number is not None:
                self._begun.graph_exists(ReleasedLoss(number, torch._C._current_autograd_node()))
            return value

        self._backward.expect(tensors, loss_with_graph)

    def aborted(self, error: BaseException) -> None:
        """Record what is known of a step that an exception has interrupted, also within its backward pass."""
        if self._backward.is_running:
            self._guarded(self._add_losses)
        super().aborted(error)

    def steps_are_over(self) -> None:
        """Record the steps of this batch that a gradient scaler has left out, and end the batch."""
        self._guarded(self._no_pass_follows)
        self._guarded(self._record_left_out_steps)
        self._guarded(self._report_nonfinite_losses, True)
        self._guarded(self._report_unused_gradients, True)
        self._guarded(self._end_batch)

    # Batches.

    def _start_batch(self, batch: Any, is_known: bool) -> None:
        if is_known:
            self._no_pass_follows()
        self._record_left_out_steps()
        self._end_batch()
        self._batch_idx += 1
        self._in_batch, self._loop.batch_is_known = True, is_known
        self._begun.batch_started(batch, self._batch_idx, forward_is_over=not is_known)

    def _end_batch(self) -> None:
        """End a batch, if an optimizer has stepped in it."""
        if self._stepped:
            self._stepped, self._in_batch = set(), False
            self._begun.batch_ended()
            self._loop.batches += 1
            if not self._marks_batches:
                self._begun.batch_expected()

    # Backward passes.

    def _backward_begins(self) -> None:
        self._begun.set_graph(exists=True)
        self._record_left_out_steps()
        self._warn_of_unseen_steps()
        is_cleared = self._backward.note_gradients()
        self._report_unused_gradients()
        if is_cleared:
            self._begun.gradients_cleared()
        self._begun.backward_begins()
        if not self._in_batch:
            self._start_batch(None, False)

    def _backward_ended(self) -> None:
        run, optimizer = self._begun, self._evaluating
        with torch.no_grad():
            run.set_graph(exists=False)
            self._add_losses()
            if not self._backward.changed_gradients():
                self._unannounced.loss_is_known = True
                return  # `torch.autograd.grad` leaves gradients as they are; they are measured before the step
            run.backward_ended()
            self._awaiting = {id(one) for one in self._loop.optimizers}
            self._scaler_version = self._loop.scaler_version
            self._backward.note_weight()
            if optimizer is not None:
                run.gradients_ready(optimizer)
                if self._loop.should_stop:
                    drop_gradients(optimizer)

    def _add_losses(self) -> None:
        """Pass on the losses that the current backward pass has reached."""
        for loss in self._backward.take_losses():
            self._begun.loss_computed(loss)

    def _warn_of_unseen_steps(self) -> None:
        """Log that weights were changed since the last backward pass, if no known optimizer has stepped since.

        Not where only one pass in two has no step after it: sharpness-aware minimization moves the weights for the next
        pass, and steps after that.
        """
        has_stepped = len(self._awaiting) < len(self._loop.optimizers) or self._evaluating is not None
        was_moved, self._is_moved = self._is_moved, not has_stepped and self._backward.weight_has_changed
        if was_moved and self._is_moved:
            self.warn_once(
                "weights were changed between two backward passes, but not by an optimizer that was passed to the "
                "monitor; the steps of another optimizer are not measured, clipped or skipped"
            )

    def _record_left_out_steps_before_loss(self) -> None:
        """Record the steps that the gradient scaler has left out before a loss, which belongs to the step after them.

        Their batch ends once the backward pass of the loss is over: its forward pass is, and has changed the buffers.
        """
        if self._has_left_out:
            self._begun.set_graph(exists=True)
            self._record_left_out_steps()

    def _no_pass_follows(self) -> None:
        """End the batch before a loss whose backward pass the loop does not run."""
        if not self._backward.is_running:
            self._begun.set_graph(exists=False)

    @property
    def _has_left_out(self) -> bool:
        """Whether the scale was updated since the gradients were measured, and an optimizer has not stepped."""
        version = self._loop.scaler_version
        return bool(self._awaiting) and version is not None and version != self._scaler_version

    def _record_left_out_steps(self) -> None:
        """Record the steps that the gradient scaler has left out, for which no hook of the optimizer is called.

        A step was left out if the scale was updated since the gradients were measured, and the optimizer has not
        stepped. Of several optimizers, one may only hold gradients of another one's loss; its step counts as left out
        if its gradients have overflowed.
        """
        if not self._has_left_out:
            return
        waiting, self._awaiting = self._awaiting, set()
        optimizers = self._loop.optimizers
        for optimizer in optimizers:
            if id(optimizer) in waiting and (len(optimizers) == 1 or self._begun.has_overflowed(optimizer)):
                self._begun.gradients_ready(optimizer)
                self._begun.step_left_out(optimizer)
                self._stepped.add(id(optimizer))
        if len(self._stepped) == len(optimizers):
            self._end_batch()

    def _report_unused_gradients(self, are_over: bool = False) -> None:
        """Report gradients that are not finite, and that the loop has cleared without a step of any optimizer."""
        if len(self._awaiting) == len(self._loop.optimizers):
            self._begun.gradients_left_out(are_over)

    # Steps.

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded(self._step_begins, optimizer, len(args) > 1 or kwargs.get("closure") is not None)

    def _step_begins(self, optimizer: Optimizer, has_closure: bool) -> None:
        if self._loop.should_stop:
            drop_gradients(optimizer)
            return
        if self.is_traced:
            self.warn_once(TRACED)
        if id(optimizer) in self._stepped and not self._marks_batches:
            self._end_batch()
        if not self._in_batch:
            self._start_batch(None, False)
        if has_closure:
            self._evaluating = optimizer
        else:
            if self._backward.is_running:  # an optimizer for each parameter, which steps once its gradient is there
                self._add_losses()
            elif id(optimizer) not in self._awaiting:
                self._unannounced.look(optimizer, self.is_traced)
            elif self._loop.moves_weights is None:
                self._loop.moves_weights = self._backward.weight_has_changed
            with torch.no_grad():
                self._begun.gradients_ready(optimizer)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded(self._step_ended, optimizer)

    def _step_ended(self, optimizer: Optimizer) -> None:
        if self._evaluating is optimizer and id(optimizer) not in self._awaiting:
            self._unannounced.look(optimizer, self.is_traced)
        self._unannounced.stepped(optimizer)
        self._evaluating = None
        self._awaiting.discard(id(optimizer))
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._loop.optimizers):
            self._end_batch()
