"""Optimizers and modules that step them in unusual ways, for tests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import (
    GradientExplosionMonitor,
    StepRecord,
)
from lightning_gradexplode.hosts.lightning_namespaces import Callback
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Batch, Regression
from tests.runs.probe import norm


class Wrapper(torch.optim.Optimizer):
    """Wraps another optimizer under the name ``optimizer``."""

    def __init__(self, parameters: Any) -> None:
        self.optimizer = torch.optim.SGD(parameters, lr=0.01)
        super().__init__(self.optimizer.param_groups, self.optimizer.defaults)
        self.param_groups = self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        """Step the wrapped optimizer."""
        return self.optimizer.step(closure)


class Bare:
    """An object with Lightning's ``Optimizable`` protocol, and nothing else."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 0.01}]
        self.defaults: dict[str, Any] = {"lr": 0.01}
        self.state: Any = defaultdict(dict)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self, closure: Any = None) -> Any:
        """Descend along the gradients."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        return loss


class Uninitialized(Bare, torch.optim.Optimizer):
    """A subclass of torch's class that does not call its constructor."""


class Forwarding:
    """Passes everything on to another optimizer, its hooks too, and derives from nothing."""

    def __init__(self, parameters: Any) -> None:
        self._wrapped = torch.optim.SGD(parameters, lr=0.01)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._wrapped, name)


class SharesAttributes(torch.optim.Optimizer):
    """Has the attributes of the optimizer that it wraps, its hooks too, and a ``step`` of its own."""

    def __init__(self, parameters: Any) -> None:
        base = torch.optim.SGD(parameters, lr=0.01)
        self.__dict__.update(vars(base))
        self.base = base

    def step(self, closure: Any = None) -> Any:
        """Step the wrapped optimizer."""
        return self.base.step(closure)


class StepOfInstance(torch.optim.SGD):
    """Its ``step`` is an attribute of the instance."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.01)
        self.step = lambda closure=None: Bare.step(self, closure)  # type: ignore[method-assign,arg-type]


class SharpnessAware(torch.optim.Optimizer):
    """Sharpness-aware minimization around Adam: parameters without a gradient are left where they are."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.base = torch.optim.Adam(self.param_groups, lr=0.01, weight_decay=0.1)
        self.before: list[Tensor] = []
        self.handed: list[float] = []

    def _with_gradient(self) -> list[Tensor]:
        return [one for one in self.param_groups[0]["params"] if one.grad is not None]

    @torch.no_grad()
    def climb(self) -> None:
        """Move along the gradient, by a distance that exists for gradients only."""
        parameters = self._with_gradient()
        length = torch.stack([one.grad.norm() for one in parameters if one.grad is not None]).norm()
        self.before = [one.clone() for one in parameters]
        for one in parameters:
            one.add_(one.grad * (0.05 / (length + 1e-12)))

    @torch.no_grad()
    def descend(self) -> None:
        """Go back, and update by the gradients that were computed there."""
        parameters = self._with_gradient()
        self.handed.append(norm(*[one.grad for one in parameters]))
        for one, before in zip(parameters, self.before, strict=False):
            one.copy_(before)
        self.base.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Evaluate twice."""
        with torch.enable_grad():
            loss = closure()
        self.climb()
        with torch.enable_grad():
            closure()
        self.descend()
        return loss


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Build gradient descent."""
    return torch.optim.SGD(parameters, lr=0.01)


class NanAtThree(Regression):
    """Its loss is NaN at batch 3."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch) * (math.nan if batch_idx == 3 else 1.0)


class ByHand(NanAtThree):
    """Manual optimization.

    Args:
        step: Steps, given the module, its Lightning optimizer and a closure that computes loss and gradients.
        build: Makes the optimizer.
    """

    def __init__(self, step: Any, build: Any = sgd) -> None:
        super().__init__(build)
        self.automatic_optimization = False
        self.step = step
        self.handed: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step."""
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = super(ByHand, self).training_step(batch, batch_idx)
            self.manual_backward(loss)
            return loss

        return self.step(self, optimizer, closure)

    def gradient_norm(self) -> float:
        """Return the norm of the gradients as they are now."""
        return norm(*[one.grad for one in self.parameters() if one.grad is not None])


def raw(module: ByHand, optimizer: Any, closure: Any) -> Tensor:
    """Step the torch optimizer inside Lightning's."""
    loss: Tensor = closure()
    module.handed.append(module.gradient_norm())
    optimizer.optimizer.step()
    return loss


class Changing(NanAtThree):
    """Changes its optimizer before batch 2, or in another hook.

    Args:
        change: Called with the module.
        when: Where: ``"batch"``, ``"step"`` or ``"start"``.
    """

    def __init__(self, change: Any, when: str = "batch") -> None:
        super().__init__(sgd)
        self.change = change
        self.when = when

    def on_train_start(self) -> None:
        """Change before the first batch."""
        if self.when == "start":
            self.change(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Change before a batch."""
        if self.when == "batch" and batch_idx == 2:
            self.change(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Change within a batch."""
        if self.when == "step" and batch_idx == 2:
            self.change(self)
        return super().training_step(batch, batch_idx)


class Records(Callback):
    """Keeps the monitor's records."""

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self.records: list[StepRecord | None] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep the record of the batch."""
        self.records.append(self.monitor.last)


def fitted(
    module: pl.LightningModule,
    *callbacks: Callback,
    plugins: Sequence[Any] = (),
    **arguments: Any,
) -> tuple[GradientExplosionMonitor, list[StepRecord | None]]:
    """Train for one epoch with every step logged."""
    monitor = GradientExplosionMonitor(report=False, diagnose=False, **arguments)
    records = Records(monitor)
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=1,
        logger=RecordingLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, *callbacks, records],
        plugins=[*plugins],
    ).fit(module)
    return monitor, records.records
