"""Optimizers of any kind are measured, and a skipped update does not happen, however they are stepped."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor, StepRecord
from lightning_gradexplode.hosts.lightning import Callback
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


class TwoClosures(torch.optim.SGD):
    """Sharpness-aware minimization: updates by the gradients at a neighboring point."""

    handed: float = math.nan

    def step(self, closure: Any = None) -> Any:
        """Evaluate twice, and update from the first point."""
        with torch.enable_grad():
            loss = closure()
        parameters = [one for one in self.param_groups[0]["params"] if one.grad is not None]
        moves = [0.1 * one.grad.sign() for one in parameters]
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter += move
        with torch.enable_grad():
            closure()
        self.handed = norm(*[parameter.grad for parameter in parameters])
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter -= move
        super().step()
        return loss


class NanAtThree(Regression):
    """Its loss is NaN at batch 3."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch) * (math.nan if batch_idx == 3 else 1.0)


class Raw(NanAtThree):
    """Steps its optimizer behind Lightning's back."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step the raw optimizer."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class WithoutOptimizers(Regression):
    """Manual optimization without an optimizer."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: [])
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute gradients only."""
        loss = self.loss(batch)
        self.manual_backward(loss)
        return loss


class Records(Callback):
    """Keeps the monitor's records."""

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self.records: list[StepRecord | None] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep the record of the batch."""
        self.records.append(self.monitor.last)


def fitted(module: pl.LightningModule, **arguments: Any) -> tuple[GradientExplosionMonitor, list[StepRecord | None]]:
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
        callbacks=[monitor, records],
    ).fit(module)
    return monitor, records.records


@pytest.mark.parametrize(
    "module",
    [lambda: NanAtThree(Wrapper), lambda: NanAtThree(Bare), lambda: NanAtThree(Uninitialized), Raw],
    ids=["wrapper", "protocol", "no constructor", "raw step"],
)
def test_every_optimizer_is_measured_and_held_back(module: Any) -> None:
    """All eight steps are measured, and only that of the NaN is skipped; the weights stay finite."""
    module = module()
    monitor, records = fitted(module, on_explosion="skip")
    assert not monitor.failed
    assert [record is not None and record.step for record in records] == list(range(8))
    assert [record is not None and record.update_taken for record in records] == [n != 3 for n in range(8)]
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert all(record is not None and record.update_ratio for n, record in enumerate(records) if n != 3)


def test_manual_optimization_without_an_optimizer() -> None:
    """There is nothing to measure, and nothing fails."""
    monitor, _ = fitted(WithoutOptimizers())
    assert not monitor.failed
    assert monitor.last is None


def test_the_gradients_of_the_last_closure_are_logged() -> None:
    """Sharpness-aware minimization updates by the gradients of its second evaluation."""
    module = Regression(TwoClosures)
    monitor, _ = fitted(module)
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    assert monitor.last is not None
    assert monitor.last.grad_norm == pytest.approx(optimizer.handed, rel=1e-6)
