"""What becomes of a run: losses, gradient norms and the first batch with a value that is not finite."""

from __future__ import annotations

import math

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer


class Probe(Callback):
    """Records losses, gradient norms and the first batch with a value that is not finite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.fault: int | None = None
        self.batches = 0

    def record_loss(self, loss: torch.Tensor) -> None:
        """Record a loss."""
        self.losses.append(float(loss.detach()))
        self._check(self.losses[-1])

    def record_gradients(self, optimizer: Optimizer) -> None:
        """Record the norm of an optimizer's gradients."""
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        self.norms.append(math.sqrt(sum(float(one.detach().double().square().sum()) for one in gradients)))
        self._check(self.norms[-1])

    def batch_ended(self, module: nn.Module) -> None:
        """Check the weights."""
        if not has_finite_weights(module):
            self._check(math.nan)
        self.batches += 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Record the loss."""
        self.record_loss(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Record the norm of the gradients."""
        self.record_gradients(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Check the weights."""
        self.batch_ended(pl_module)

    def _check(self, value: float) -> None:
        if self.fault is None and not math.isfinite(value):
            self.fault = self.batches


def has_finite_weights(module: nn.Module) -> bool:
    """Return whether all parameters are finite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
