"""The monitor in the Trainer of Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from lightning_gradexplode.arguments import Arguments, MonitorArguments, takes_monitor_arguments
from lightning_gradexplode.engine.failure import MONITOR_FAILED_AT_START, MONITOR_IS_OFF
from lightning_gradexplode.hosts.accelerator_losses import AcceleratorLosses
from lightning_gradexplode.hosts.results import StepEventsResults
from lightning_gradexplode.hosts.step_events import StepEvents
from lightning_gradexplode.hosts.transformers_loop import TransformersLoop, loss_in, tensors_in
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.plain import to_plain

if TYPE_CHECKING:
    from typing_extensions import Unpack

UNKNOWN_LOSS = (
    "the loss is neither given to Accelerator.backward() nor in the result of the model, and is not known; call loss() "
    "of the callback with it in a compute_loss of your own"
)

STATE = "gradexplode"
"""The name of our state among those of callbacks in ``trainer_state.json``."""


class GradientExplosionTrainerCallback(StepEventsResults, TrainerCallback):  # type: ignore[misc]
    """Measure, report, explain and remedy explosions in a run of ``transformers.Trainer``.

    Gradients are measured at the end of the backward pass of the last micro-batch, before ``max_grad_norm``, unscaled.
    The loss is the one whose backward pass the Trainer begins, as its log has it, whether the model or a
    ``compute_loss`` of your own computes it. Steps are numbered like ``global_step``, from 1. Scalars and histograms go
    to TensorBoard and W&B if ``report_to`` names them, else to ``gradexplode.csv`` in ``output_dir``;
    ``gradexplode/grad_norm``, ``gradexplode/update_ratio`` and ``gradexplode/severity`` are in ``state.log_history``
    too. Reports are written to ``gradexplode`` in ``output_dir``.

    Args:
        loggers: See `GradientWatch`; replaces the loggers that ``report_to`` names.
        **arguments: The arguments of `GradientExplosionMonitor`; ``log_every_n_steps=None`` is ``logging_steps``, and
            ``on_explosion="stop"`` ends the training.

    Raises:
        TypeError: An argument is of a type that is not accepted.
        ValueError: An argument is out of range, or a name is unknown.

    Example::

        Trainer(model, args, train_dataset=data, callbacks=[GradientExplosionTrainerCallback()]).train()
    """

    _loop: TransformersLoop
    """The Trainer's loop, set together with `_events`."""

    @takes_monitor_arguments
    def __init__(self, *, loggers: Sequence[Any] | None = None, **arguments: Unpack[MonitorArguments]) -> None:
        self.arguments = Arguments.checked(**arguments)
        self._loggers = loggers
        self._hooks: list[Any] = []
        self._losses: AcceleratorLosses | None = None
        self._has_own_loss = False

    def loss(self, loss: Tensor) -> None:
        """Record another loss than the one whose backward pass the Trainer begins. Call it in your ``compute_loss``.

        Args:
            loss: The loss.
        """
        if self._events is not None and loss.requires_grad:
            self._has_own_loss, value = True, loss.detach()
            self._events.expect_backward([loss], lambda _, gradient: self._counted(value * gradient))

    # The Trainer's events, in the order of a run.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to monitor a run, where it was resumed from a checkpoint with what was saved in it."""
        self._close()
        self._events = None
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        try:
            loop = TransformersLoop(args, state, model, optimizer, kwargs.get("lr_scheduler"), self._loggers)
        except Exception:
            logger.exception(MONITOR_FAILED_AT_START)
            return
        if loop.unsupported is not None:
            logger.warning(MONITOR_IS_OFF, loop.unsupported)
            return
        saved = (state.stateful_callbacks or {}).get(STATE, {})
        self._loop, self._events = loop, StepEvents(self.arguments, loop, saved, self._abort)
        self._losses = AcceleratorLosses(optimizer, self._backward_begins)
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self._forward_begins), with_kwargs=True),
            model.register_forward_hook(_Hook(self._forward_ended)),
        ]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step, also one that the gradient scaler has left out."""
        if self._events is not None:
            self._events.steps_are_over()
            if not self._loop.losses:
                self._events.warn_once(UNKNOWN_LOSS)
            self._loop.losses = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop the training if a response has decided so, and keep our state where a checkpoint is saved next."""
        if self._events is None:
            return control
        if self._loop.should_stop:
            control.should_training_stop = True
        if control.should_save and self._run is not None and not self.failed:
            self._run.flush()
            state.stateful_callbacks[STATE] = to_plain(self._run.state_dict())
        return control

    on_substep_end = on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the latest values to the Trainer's log."""
        if self._events is not None and logs is not None and "loss" in logs:
            logs.update(self._loop.metrics)
            if state.log_history:
                state.log_history[-1].update(self._loop.metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run; the results stay."""
        self._close()

    def _abort(self, error: BaseException) -> None:
        if self._events is not None:
            self._events.aborted(error)
        self._close()

    def _close(self) -> None:
        if self._losses is not None:
            self._losses.close()
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        if self._events is not None:
            self._events.close()
            self._loop.close()

    # The model's forward pass.

    def _forward_begins(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled() and self._events is not None:
            self._has_own_loss = False
            if args:
                return
            # The number of items divides a sum over all micro-batches; one batch alone is computed again as a mean.
            self._events.batch_begins({name: one for name, one in kwargs.items() if name != "num_items_in_batch"})

    def _forward_ended(self, model: Any, args: tuple[Any, ...], output: Any) -> None:
        if not model.training or not torch.is_grad_enabled() or self._events is None:
            return
        loss, tensors = loss_in(output), tensors_in(output)
        # Hooks that referred to the tensors themselves would keep them, and their graph, for ever.
        values = [one.detach() if one is loss else None for one in tensors]

        def contribution(index: int, gradient: Tensor) -> Tensor | None:
            value = values[index]
            if value is None:
                return None
            self._loop.trains_loss_of_model = True
            # Without Accelerator.backward. The loss of the pass is this one divided, and scaled by a gradient scaler.
            return None if self._has_own_loss else self._counted(value * gradient)

        self._events.expect_backward(tensors, contribution)

    def _backward_begins(self, loss: Tensor) -> None:
        self._loop.trains_loss_of_model = False  # until the pass reaches it
        if not self._has_own_loss and loss.numel() == 1:
            self.loss(loss)

    def _counted(self, loss: Tensor) -> Tensor:
        self._loop.losses += 1
        return loss.detach()


class _Hook:
    """A hook of the user's model, which does nothing in a copy of it.

    Args:
        call: What is called; None in a copy.
    """

    def __init__(self, call: Callable[..., None] | None) -> None:
        self._call = call

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # not to be compiled along with the model
    def __call__(self, *args: Any) -> None:
        if self._call is not None:
            self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)
