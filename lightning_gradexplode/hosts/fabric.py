"""The monitor in a training loop that Lightning Fabric drives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.arguments import MonitorArguments, takes_monitor_arguments
from lightning_gradexplode.hosts.gradient_watch import GradientWatch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FabricWatch(GradientWatch):
    """A `GradientWatch` that uses Fabric's loggers and gradient scaler.

    The norm is measured before ``fabric.clip_gradients``, unscaled, with every precision plugin. With
    ``fabric.no_backward_sync`` it is the norm of the synchronized sum.

    Args:
        fabric: The ``Fabric``, of ``lightning.fabric`` or ``lightning_fabric``.
        model: The model that ``fabric.setup`` returned.
        optimizer: The optimizer that ``fabric.setup`` returned, or a list of several.
        loggers: See `GradientWatch`; None uses Fabric's loggers.
        log_dir: Folder of the run's logs; None uses the folder of the first logger.
        step: Function of a model and a batch that returns the loss, see `GradientWatch`.
        **arguments: The arguments of `GradientExplosionMonitor`.

    Raises:
        TypeError: An argument is of a type that is not accepted.
        ValueError: An argument is out of range, or a name is unknown.

    Example::

        model, optimizer = fabric.setup(model, optimizer)
        watch = FabricWatch(fabric, model, optimizer)
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(batch))
            watch.loss(loss)  # the only further line
            fabric.backward(loss)
            optimizer.step()
        watch.close()
    """

    @takes_monitor_arguments
    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        loggers: Sequence[Any] | None = None,
        log_dir: str | Path | None = None,
        step: Callable[[Any, Any], Any] | None = None,
        **arguments: Unpack[MonitorArguments],
    ) -> None:
        precision = getattr(getattr(fabric, "strategy", None), "precision", None)
        if precision is None:
            raise TypeError(f"fabric must be a lightning.fabric.Fabric, got {fabric!r}")
        super().__init__(
            model,
            optimizer,
            loggers=fabric.loggers if loggers is None else loggers,
            log_dir=log_dir,
            scaler=getattr(precision, "scaler", None),
            step=step,
            **arguments,
        )
