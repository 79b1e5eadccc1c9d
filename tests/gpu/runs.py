"""Small runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.models import Regression
from tests.runs.probe import QUIET

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks of the monitor from the loss to the update."""


class Forbidding(pl.Callback):
    """Makes each wait for the GPU in the monitor's hooks an error, which switches the monitor off.

    Args:
        monitor: The monitor.
        first: The first step that must not wait.
    """

    def __init__(self, monitor: GradientExplosionMonitor, first: int) -> None:
        self.step, self.first = 0, first
        for hook in HOOKS:
            setattr(monitor, hook, self._without_waits(getattr(monitor, hook)))

    def _without_waits(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error" if self.step >= self.first else "default")
            try:
                return hook(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Count the step."""
        self.step += 1


class Norms(pl.Callback):
    """Computes the norm of all gradients of each step in float64, with a plain loop, and keeps the monitor's records.

    Args:
        monitor: Whose records are kept.
    """

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        self.monitor = monitor
        self.truths: list[float] = []
        self.found: dict[int, float | None] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Compute the truth; a scaler has divided its scale out by now."""
        squares = [one.grad.double().square().sum() for one in pl_module.parameters() if one.grad is not None]
        self.truths.append(float(torch.stack(squares).sum().sqrt()))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Keep the latest record."""
        last = self.monitor.last
        if last is not None:
            self.found[last.step] = last.grad_norm


def fit(module: pl.LightningModule, *callbacks: pl.Callback, steps: int = 12, **trainer: Any) -> pl.Trainer:
    """Train on the GPU from a fixed seed."""
    torch.manual_seed(0)
    settings = {**QUIET, "accelerator": "gpu", "devices": 1, "max_steps": steps, "logger": False, **trainer}
    one = pl.Trainer(**settings, callbacks=list(callbacks))
    one.fit(module)
    return one


def weights(module: pl.LightningModule) -> list[Tensor]:
    """Return copies of a module's parameters."""
    return [one.detach().cpu().clone() for one in module.parameters()]


def regression(build: Any = None, batches: int = 12) -> Regression:
    """Build a regression with dropout, always with the same weights."""
    torch.manual_seed(0)
    return Regression(build, batches=batches)
