"""The outcome of a run, determined from the run itself, independently of detectors and monitor."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from benchmarks.scenarios.module import ScenarioModule

Label = Literal["explodes", "healthy", "grey"]

LOST_LOSS = 10.0
LOST_STEPS = 5
LOST_WEIGHTS = 100.0
GREY_END = 2.0
GREY_WEIGHTS = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    A run is lost at the first step with a non-finite loss, weight, or gradient that the optimizer receives; or if the
    loss has been above ten times its start for five steps in a row; or if the norm of all weights exceeds a hundred
    times its start. The start of weights that are all zero is their norm after the first step. With an adaptive
    gradient scaler, a non-finite loss or gradient does not count as long as the scale is at least 1, since the scaler
    skips the step and reduces the scale.

    A run that is not lost is grey, and not evaluated, if its loss was above ten times its start at two steps in a row,
    if it ends above twice its start (median of the last twenty steps), or if its weights end above thirty times their
    start. All others are healthy.

    If the loss cannot show the damage, another number is used in its place (`ScenarioModule.damage`). The start of the
    loss is the median over the first eight batches with the untrained network. "Ten times" is a rise by nine units. The
    unit is the absolute value of that start or the standard deviation of the eight losses, whichever is larger, so that
    the rule also applies to a loss around zero.

    Args:
        label: The outcome.
        lost: The step at which the run was lost, None if it was not.
        reason: Why it has this outcome.
    """

    label: Label
    lost: int | None
    reason: str


def losses_before(module: ScenarioModule, batches: Sequence[Any]) -> list[float]:
    """Return the loss of batches, or the number used in its place, without a change of the network."""
    copied = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(module.needs_gradients):
        return [copied.damage(batch, float(copied.loss(batch).detach())) for batch in batches]


class Probe(Callback):
    """Checks losses, gradients and weights of a run, and ends it some steps after it was lost.

    Args:
        start: Losses before the first step.
        further: Number of further steps of a lost run.
    """

    def __init__(self, start: Sequence[float], further: int = 10) -> None:
        finite = [loss for loss in start if math.isfinite(loss)]
        self.start = median(finite) if finite else math.nan
        self.unit = max(abs(self.start), _deviation(finite)) if finite else math.nan
        self.further = further
        self.lost: int | None = None
        self.reason = ""
        self.last_step = -1
        self._losses: list[float] = []
        self._above = 0
        self._most_above = 0
        self._first_weights = math.nan
        self._last_weights = math.nan

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the weights before the first step."""
        self._first_weights = _size(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients that the optimizer receives."""
        self.last_step = _step(trainer)
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        gradients = (one.coalesce().values() if one.is_sparse else one for one in gradients)
        if not all(torch.isfinite(gradient).all() for gradient in gradients) and not _may_pass(trainer):
            self._lose(trainer, "a gradient is not finite")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss and the weights."""
        loss, damage = pl_module.last_loss, pl_module.last_damage
        assert isinstance(loss, float)
        assert isinstance(damage, float)
        self._losses.append(damage)
        self._last_weights = _size(pl_module)
        self._first_weights = self._first_weights or self._last_weights
        if not math.isfinite(loss) and not _may_pass(trainer):
            self._lose(trainer, "the loss is not finite")
        if not math.isfinite(self._last_weights):
            self._lose(trainer, "a weight is not finite")
        self._above = self._above + 1 if damage - self.start > (LOST_LOSS - 1) * self.unit else 0
        self._most_above = max(self._most_above, self._above)
        if self._above >= LOST_STEPS:
            self._lose(trainer, "the loss stays above ten times its start")
        if self._last_weights > LOST_WEIGHTS * self._first_weights:
            self._lose(trainer, "the weights are above a hundred times their start")
        if self.lost is not None and _step(trainer) >= self.lost + self.further:
            trainer.should_stop = True

    def outcome(self) -> Outcome:
        """Return the outcome at the end of the run."""
        if self.lost is not None:
            return Outcome("explodes", self.lost, self.reason)
        end = median(self._losses[-20:])
        if not end - self.start <= (GREY_END - 1) * self.unit:
            return Outcome("grey", None, "the loss ended above twice its start")
        if self._most_above >= 2:
            return Outcome("grey", None, "the loss was above ten times its start for a while")
        if self._last_weights > GREY_WEIGHTS * self._first_weights:
            return Outcome("grey", None, "the weights ended above thirty times their start")
        return Outcome("healthy", None, "")

    def _lose(self, trainer: Trainer, reason: str) -> None:
        if self.lost is None:
            self.lost, self.reason = _step(trainer), reason


def _step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs, as that of findings."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _may_pass(trainer: Trainer) -> bool:
    """Return whether a gradient scaler skips this step and can still reduce its scale."""
    scaler = trainer.scaler
    return scaler is not None and scaler.get_backoff_factor() < 1.0 and scaler.get_scale() >= 1.0


def _size(module: LightningModule) -> float:
    """Return the norm of all weights, in float64."""
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in module.parameters()))


def _deviation(values: Sequence[float]) -> float:
    return float(torch.tensor(values).double().std(correction=0))
