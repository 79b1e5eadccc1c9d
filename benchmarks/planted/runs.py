"""Train a task with a fault, in Lightning's Trainer or in a loop of plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from benchmarks.planted.faults import Fault, Plan
from benchmarks.planted.tasks import Batch, Task
from lightning_gradexplode import GradientExplosionMonitor, GradientWatch

Loop = Literal["lightning", "plain"]

JUMPS_AT = 60
"""Step at which a learning rate that jumps is raised."""

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The end of a run.

    Args:
        losses: The losses of its batches.
        monitor: The monitor.
        error: The exception that has ended it, empty without one.
    """

    losses: tuple[float, ...]
    monitor: Any
    error: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the run raised, a loss is not finite, or the last losses are far above or below the first."""
        if self.error or not all(map(math.isfinite, self.losses)):
            return True
        start, end = (float(np.median(part)) for part in (self.losses[:3], self.losses[-10:]))
        return end > 3 * abs(start) + 1 or end < -20 * abs(start) - 20


def train(task: type[Task], fault: Fault | None, loop: Loop) -> Trained:
    """Train a task with a fault, or without one, with fixed random numbers."""
    torch.manual_seed(0)
    network = task()
    plan = Plan(network, network.data(Generator().manual_seed(1)), task.lr)
    if fault is not None:
        fault.plant(plan)
    losses: list[float] = []
    run = _train_in_lightning if loop == "lightning" else _train_in_plain_loop
    monitor, error = run(plan, losses)
    return Trained(tuple(losses), monitor, error)


class _Rows(Dataset[Batch]):
    def __init__(self, data: Batch) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(next(iter(self._data.values())))

    def __getitem__(self, row: int) -> Batch:
        return {name: values[row] for name, values in self._data.items()}


class _Module(pl.LightningModule):
    def __init__(self, plan: Plan, losses: list[float]) -> None:
        super().__init__()
        self.net = plan.task
        self._plan, self._losses, self._batches = plan, losses, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(self._plan.prepare(batch, self._batches))
        return loss * self._plan.sums  # the Trainer divides by the number of micro-batches

    def configure_optimizers(self) -> Any:
        optimizer = _optimizer(self._plan)
        return [optimizer], [{"scheduler": _schedule(self._plan, optimizer), "interval": "step"}]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self._plan.clears:
            optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._losses.append(float(outputs["loss"]))
        self._batches += 1


def _train_in_lightning(plan: Plan, losses: list[float]) -> tuple[Any, str]:
    monitor = GradientExplosionMonitor(report=False)
    trainer = pl.Trainer(
        max_steps=plan.steps,
        max_epochs=-1,
        accelerator="cpu",
        precision="16-true" if plan.is_half else "32-true",
        accumulate_grad_batches=plan.sums,
        callbacks=[monitor],
        **QUIET,  # type: ignore[arg-type]
    )
    try:
        trainer.fit(_Module(plan, losses), _loader(plan))
    except Exception as raised:
        return monitor, type(raised).__name__
    return monitor, ""


def _train_in_plain_loop(plan: Plan, losses: list[float]) -> tuple[Any, str]:
    network = plan.task.half() if plan.is_half else plan.task
    optimizer = _optimizer(plan)
    schedule = _schedule(plan, optimizer)
    watch = GradientWatch(network, optimizer, report=False)
    try:
        for number, batch in enumerate(_batches(plan)):
            if plan.clears and number % plan.sums == 0:
                optimizer.zero_grad()
            loss = network(plan.prepare(batch, number))
            losses.append(float(loss.detach()))
            watch.loss(loss)
            loss.backward()
            if (number + 1) % plan.sums == 0:
                optimizer.step()
                schedule.step()
    except Exception as raised:
        return watch, type(raised).__name__
    finally:
        watch.close()
    return watch, ""


def _batches(plan: Plan) -> Iterator[Batch]:
    left = plan.steps * plan.sums
    while left:
        for batch in _loader(plan):
            if left:
                left -= 1
                yield {
                    name: one.half() if plan.is_half and one.is_floating_point() else one for name, one in batch.items()
                }


def _loader(plan: Plan) -> DataLoader[Batch]:
    return DataLoader(_Rows(plan.data), plan.task.batch_size, shuffle=True, generator=Generator().manual_seed(2))


def _optimizer(plan: Plan) -> Optimizer:
    parameters = [one for one in plan.task.parameters() if one.requires_grad]
    return plan.task.optimizer(plan.lr) if plan.optimizer is None else plan.optimizer(parameters)


def _schedule(plan: Plan, optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: plan.jump if step >= JUMPS_AT else 1.0)
