"""Findings at chosen steps, and the states of a run after each batch."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import Detector, Finding, Severity, StepRecord
from tests.runs.probe import Watched


class AlarmAt(Detector):
    """A critical finding at chosen steps.

    Args:
        steps: The steps.
        late: Whether it only shows in what the update has changed.
        severity: How bad it is.
    """

    sign = "alarm"

    def __init__(self, steps: Collection[int], late: bool = False, severity: Severity = Severity.CRITICAL) -> None:
        self.steps = steps
        self.severity = severity
        self.reads = ("update_ratio",) if late else ("grad_norm",)  # type: ignore[misc]
        self._seen: list[int] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Return a finding at the chosen steps."""
        self._seen.append(record.step)
        if record.step not in self.steps:
            return None
        return self.finding(record, self.severity, 1.0, 0.0, "an alarm on purpose")


class States(pl.Callback):
    """Copies weights, buffers and optimizer states after each batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.optimizers: list[list[dict[Any, Any]]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Copy the first state, as the one after batch -1."""
        if not self.weights:
            self._take(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Copy the state."""
        self._take(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights.append(copy.deepcopy(pl_module.state_dict()))
        self.optimizers.append([copy.deepcopy(one.state_dict()["state"]) for one in trainer.optimizers])
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def after(self, batch: int) -> tuple[dict[str, Tensor], list[dict[Any, Any]]]:
        """Return weights and optimizer states after a batch; -1 is before the first."""
        return self.weights[batch + 1], self.optimizers[batch + 1]


def watched(
    module: pl.LightningModule,
    alarms: Collection[int],
    responses: Any,
    late: bool = False,
    detectors: Sequence[Detector] | None = None,
    behind: Sequence[pl.Callback] = (),
    **options: Any,
) -> tuple[Watched, States]:
    """Train with alarms at chosen steps, and with responses to them; the callbacks `behind` come after the monitor."""
    states = States()
    chosen = [AlarmAt(alarms, late)] if detectors is None else detectors
    monitor = {"detectors": chosen, "on_explosion": responses, "histogram_every_n_steps": 0}
    run = Watched(module, monitor=monitor, callbacks_behind=[states, *behind], **{"max_steps": 8, **options})
    assert not run.monitor.failed
    return run, states


def same(one: Any, other: Any) -> bool:
    """Return whether two nested states have the same bits; a line search's count of evaluations is left out."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "func_evals")
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
