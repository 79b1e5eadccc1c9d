"""The monitor in a training loop of plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments, MonitorArguments, takes_monitor_arguments
from lightning_gradexplode.checks import shown
from lightning_gradexplode.distributed.shard_layout import readable
from lightning_gradexplode.engine.failure import MONITOR_IS_OFF
from lightning_gradexplode.hosts.results import StepEventsResults
from lightning_gradexplode.hosts.step_events import StepEvents
from lightning_gradexplode.hosts.torch_loop import TorchLoop
from lightning_gradexplode.measure.module_gradients import is_transformed
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.records.log import logger

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

SMALLEST_SCALE = 256.0
"""Power of two from which a factor of the loss is assumed to be the scale of a gradient scaler."""

REDUCED_LATER = (
    "the network that was passed is not wrapped in DistributedDataParallel; if it is elsewhere, pass the wrapper; if "
    "the loop itself averages gradients after the backward pass, the norms are those of each process before that"
)

TRANSFORMED = (
    "loss() was called within a transform of torch.func, whose loss cannot be read outside of it; the gradients are "
    "measured as the optimizer gets them, and the loss is unknown"
)


class GradientWatch(StepEventsResults):
    """Measure, report, explain and remedy explosions in a training loop of plain PyTorch.

    Gradients are measured at the end of the backward pass of each loss that is passed to `loss`, before the loop's own
    clipping; gradients that are accumulated for one optimizer step are measured together. A batch ends when each
    optimizer has stepped, or one steps again. Metrics have the same names as those of `GradientExplosionMonitor`.

    Args:
        model: The network.
        optimizer: Its optimizer, or a list of several.
        loggers: ``SummaryWriter``, W&B runs, or objects with ``log_metrics(metrics=, step=)``. Without loggers but with
            a ``log_dir``, scalars are written to ``gradexplode.csv`` there.
        log_dir: Folder of the run's logs; reports are written to ``gradexplode`` inside.
        scaler: The ``torch.amp.GradScaler`` of the loop.
        step: Function of a model and a batch that returns the loss, so that a step can be computed again on a copy of
            the model for the diagnosis. It needs a call of `batch` before each batch.
        **arguments: The arguments of `GradientExplosionMonitor`. ``log_every_n_steps=None`` is 50, ``clip`` changes the
            gradients right before the optimizer's step, and ``on_explosion="stop"`` sets `should_stop`.

    Raises:
        TypeError: An argument is of a type that is not accepted.
        ValueError: An argument is out of range, or a name is unknown.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientWatch(model, optimizer, report=False) as watch:
        ...     for batch in [torch.ones(4, 2)] * 3:
        ...         optimizer.zero_grad()
        ...         loss = model(batch).square().mean()
        ...         watch.loss(loss)
        ...         loss.backward()
        ...         optimizer.step()
        >>> watch.last.step
        2
    """

    @takes_monitor_arguments
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        loggers: Sequence[Any] = (),
        log_dir: str | Path | None = None,
        scaler: Any = None,
        step: Callable[[Any, Any], Any] | None = None,
        **arguments: Unpack[MonitorArguments],
    ) -> None:
        self.arguments = Arguments.checked(**arguments)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module (of several networks a ModuleList), got {_kind(model)}")
        several = list(optimizer) if isinstance(optimizer, Iterable) else []
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else several
        if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or a list of them, got {_kind(optimizer)}")
        if len({id(one) for one in optimizers}) < len(optimizers):
            raise ValueError("optimizer must be a list of different optimizers, got one of them twice")
        if not (log_dir is None or isinstance(log_dir, (str, Path))):
            raise TypeError(f"log_dir must be a path, got {shown(log_dir)}")
        if not (scaler is None or hasattr(scaler, "get_scale")):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {shown(scaler)}")
        if not (step is None or callable(step)):
            raise TypeError(f"step must be a function of a model and a batch, got {shown(step)}")
        loggers = _listed(loggers)
        folder = None if log_dir is None else Path(log_dir)
        self._scale_is_checked = False
        self._factors: PendingRead | None = None
        written = loggers or ([] if folder is None else None)
        self._loop = TorchLoop(model, optimizers, written, folder, scaler, step, type(self).__name__)
        self._begin({})

    def _begin(self, state: Mapping[str, Any]) -> None:
        if self._loop.unsupported is not None:
            logger.warning(MONITOR_IS_OFF, self._loop.unsupported)
            return
        self._events = StepEvents(self.arguments, self._loop, state)
        if self._loop.process_group.size > 1 and not self._loop.reduces and self._loop.is_main_process:
            self._events.warn_once(REDUCED_LATER)

    # What the training loop calls.

    def batch(self, batch: Any) -> None:
        """Mark the start of a batch or micro-batch. Without it, the diagnosis does not examine batches.

        Args:
            batch: The input of the model.
        """
        if self._events is None:
            return
        if torch.compiler.is_compiling():
            self._events.is_traced = True
            return
        self._events.batch_begins(batch)

    def loss(self, loss: Tensor) -> None:
        """Prepare the measurement of the gradients at the end of the backward pass of a loss.

        Args:
            loss: The loss, before a gradient scaler scales it, with one element. The value of a loss that is complex or
                has several elements is not recorded.
        """
        if self._events is None:
            return
        if torch.compiler.is_compiling():  # what follows cannot be traced, and would end a compilation as one graph
            self._events.is_traced = True
            return
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            if not isinstance(loss, Tensor) or torch.is_grad_enabled():
                got = "detached one" if isinstance(loss, Tensor) else type(loss).__name__
                self._events.warn_once(f"loss() needs the tensor that backward() is called on, got a {got}")
            return
        if is_transformed(loss):
            self._events.warn_once(TRANSFORMED)
            return

        number = loss.detach()  # a hook that referred to the loss itself would keep it, and its graph, for ever

        def value(index: int, gradient: Tensor) -> Tensor | None:
            if number.numel() != 1 or number.is_complex():
                return None
            scale = self._loop.loss_scale()[0]
            if not self._scale_is_checked:
                self._check_scale(gradient, scale)
            own = number if scale is None else readable(number)
            return own if own is None or scale is None else own * scale.to(own.device)

        self._events.expect_loss(loss, value)

    def _check_scale(self, gradient: Tensor, scale: Tensor | None) -> None:
        """Record what the first loss is multiplied by; log where a gradient scaler is not known, or applied earlier.

        On an accelerator the numbers are read in the next backward pass, when they have long been computed.

        Args:
            gradient: The gradient that the backward pass of the loss begins with: what the loss was multiplied by.
            scale: The scale of the gradient scaler that is known.
        """
        if self._factors is None:
            total = readable(gradient.sum())
            if total is None:
                return
            self._factors = PendingRead([total] if scale is None else [total, scale])
            if not self._factors.is_there:
                return
        self._scale_is_checked = True
        factor, *scales = self._factors.values().tolist()
        if self._events is None:
            return
        known = scales[0] if scales else 1.0
        if not scales and factor >= SMALLEST_SCALE and math.frexp(factor)[0] == 0.5:
            self._events.warn_once(
                f"the loss is multiplied by {factor:g} before its backward pass, and so are the gradients that are "
                f"recorded; where a gradient scaler does that, pass it: {type(self).__name__}(..., scaler=scaler)"
            )
        elif factor == 1.0 and known >= SMALLEST_SCALE:
            self._events.warn_once(
                "loss() was called with a loss that the gradient scaler has scaled, and records it so; call it with "
                "the loss before scaler.scale()"
            )
        else:
            self._loop.loss_factor = factor / known

    @property
    def should_stop(self) -> bool:
        """Whether a response has stopped the training; end the loop then; updates are skipped until it ends."""
        return self._loop.should_stop

    def close(self) -> None:
        """End the run, and remove all hooks; the results stay.

        Of several processes without ``DistributedDataParallel``, which may take different numbers of steps, the others
        wait at most two minutes for the next step of one that has not called this.
        """
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._events is not None:
            self._events.aborted(error)
        self.close()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what later decisions depend on, in plain values, for a checkpoint."""
        if self._run is None:
            return {}
        self._run.flush()
        return {**self._run.state_dict(), "batches": self._loop.batches}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if self._events is not None:
            self._events.remove_hooks()
        batches = state_dict.get("batches", 0)
        if not isinstance(batches, int):
            logger.warning(
                "gradexplode: the saved number of batches is not an integer but %s; batches are counted from 0",
                shown(batches),
            )
            batches = 0
        self._loop.batches = batches
        self._begin(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a GradientWatch belongs to the loop that it measures; save its state_dict() instead")


def _listed(loggers: Any) -> list[Any]:
    """Return loggers as a list, also one that was given by itself.

    Raises:
        TypeError: They are no loggers.
    """
    listed = list(loggers) if isinstance(loggers, (list, tuple, set)) else [loggers]
    if any(isinstance(one, (str, bytes, int, float, type(None))) for one in listed):
        raise TypeError(
            f"loggers must be a list of SummaryWriters, W&B runs or objects with log_metrics(), got {shown(loggers)}"
        )
    return listed


def _kind(value: Any) -> str:
    """Return what an argument is: a number or text itself, of anything else its type."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {', '.join(sorted({type(one).__name__ for one in value})) or 'nothing'}"
    return shown(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
