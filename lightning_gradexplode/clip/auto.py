"""The threshold behind ``clip="auto"``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.optim import SGD, Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import StepRecord

_CREEP = 1.1
"""How much above the usual norm a norm is counted at most; medians are not moved by it while the norms are steady."""


class AutoPolicy(ClipPolicy):
    """``clip="auto"``: a threshold from three limits, none of which binds while a run goes as usual.

    The reach of a step: plain gradient descent (``torch.optim.SGD``) may move the weights by at most `reach` of their
    norm at the start in one step, whatever the learning rate; usual steps move them by a thousandth. (The norm counts
    as at least the one that torch's own initialization gives matrices, since some weights begin next to zero.) With
    momentum m, under which steps add up to between 1 and ``1 / (1 - m)`` of them, the step counts as longer by the
    latter number to the power of 3/5. This limit holds from the first step on, before anything usual is known, and is
    what holds most runs whose learning rate is too high. Adaptive optimizers bound their steps by themselves, and are
    left to the other two.

    The usual norm: the threshold is at most `factor` times the median of the last `window` norms, each counted as at
    most a tenth more than the usual one, so that an explosion raises the threshold that holds it by a tenth in half a
    window at most. (Pascanu, Mikolov and Bengio 2013, section 3.2, found thresholds from half to ten times the average
    norm to work; healthy runs whose gradients grow for a good reason need more.) Until `start` norms are known, the
    smallest one so far stands for the usual one.

    The loss: while it is above the region where it started, the threshold falls by three tenths at each step at which
    it still rises, and slowly where it stays; when it comes down, the threshold returns by a tenth at each step.

    What the numbers are worth is measured by ``python -m benchmarks.rescue``; they were chosen on the same families.

    Args:
        factor: Threshold over usual norm.
        window: Number of norms remembered.
        start: Number of norms from which on their median is used.
        reach: Share of the weights' norm that one step of plain gradient descent may move.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, factor: float = 30.0, window: int = 100, start: int = 20, reach: float = 0.15) -> None:
        self.factor = checks.number("factor", factor)
        self.start = checks.count("start", start, 1)
        self.reach = checks.number("reach", reach)
        self._norms = RollingQuantiles(checks.count("window", window, 1))
        self._loss = _LossRegion()
        self._optimizer: Optimizer | None = None
        self._weights: float | None = None
        self._least_weights = 0.0

    def begin(self, optimizer: Optimizer) -> None:
        """Note the optimizer, whose learning rates are read at each step."""
        self._optimizer = optimizer
        tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._least_weights = math.sqrt(sum(one.shape[0] / 3 for one in tensors if one.ndim > 1))

    def threshold(self, record: StepRecord) -> float | None:
        """Give the threshold, and remember the step's norm as it will be after clipping."""
        if self._weights is None:
            self._weights = record.weight_norm_before
        self._loss.note(record.loss)
        norm = record.grad_norm
        if norm is None or not (math.isfinite(norm) and norm > 0):
            return self.factor * self._usual() * self._loss.caution if len(self._norms) else None
        if not len(self._norms):
            self._norms.add(norm)
        usual = self._usual()
        self._norms.add(min(norm, usual * _CREEP))
        limit = min(self.factor * usual, self._reach_of_step(norm, record))
        return max(limit * self._loss.caution, 1e-300)

    def _usual(self) -> float:
        return float(self._norms.median if len(self._norms) >= self.start else self._norms.quantile(0.0))

    def _reach_of_step(self, norm: float, record: StepRecord) -> float:
        """Give the norm to which gradients have to be clipped for the weights not to move too far."""
        if not isinstance(self._optimizer, SGD) or not self._weights:
            return math.inf
        moved = _moved(self._optimizer, norm, record)
        weights = max(self._weights, self._least_weights)
        return float(norm * self.reach * weights / moved) if moved > 0 else math.inf

    def state_dict(self) -> dict[str, Any]:
        """Give what is remembered of norms, losses and weights."""
        return {"norms": self._norms.state_dict(), "loss": self._loss.state_dict(), "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._norms.load_state_dict(state["norms"])
        self._loss.load_state_dict(state["loss"])
        self._weights = state["weights"]


def _moved(optimizer: Optimizer, norm: float, record: StepRecord) -> float:
    """Give how far gradients like these move the weights in one step, counting the momentum of steps before it."""
    rates: list[float] = [
        float(group["lr"]) / (1 - min(group["momentum"], 0.9999)) ** 0.6 for group in optimizer.param_groups
    ]
    if len(rates) == 1:
        return rates[0] * norm
    each = record.per_parameter["grad_norm"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sum(sizes) != len(each):
        return max(rates) * norm
    return float(np.linalg.norm(np.repeat(rates, sizes) * each))


class _LossRegion:
    """Tells by the loss how much caution is called for: 1.0 for none, less for more."""

    def __init__(self) -> None:
        self.caution = 1.0
        self._first = RollingQuantiles(5)
        self._last = RollingQuantiles(5)
        self._changes = RollingQuantiles(100)
        self._before: float | None = None
        self._levels: list[float] = []
        self._outside = False

    def note(self, loss: float | None) -> None:
        """Look at a step's loss."""
        if loss is None:
            return
        if not math.isfinite(loss):
            self.caution = max(self.caution * 0.7, 1e-9)
            return
        self._last.add(loss)
        if len(self._first) < self._first.size:
            self._first.add(loss)
        if self._before is not None and not self._outside:
            self._changes.add(min(abs(loss - self._before), 1e300))
        self._before = loss
        level = self._last.median
        self._levels = [*self._levels[-self._last.size :], level]
        self._outside = level - self._first.median > (0.0 if self._outside else self._unit())
        if not self._outside:
            self.caution = min(1.0, self.caution * 1.1)
            return
        rise, least = level - self._levels[0], 0.05 * abs(self._levels[0])
        change = 0.7 if rise > least else 1.1 if rise < -least else 0.97
        self.caution = min(1.0, max(1e-9, self.caution * change))

    def _unit(self) -> float:
        """How far above its start a loss has to be: three tenths of its size there, and more if it is noisy."""
        noise = 4 * self._changes.median if len(self._changes) else 0.0
        return max(0.3 * abs(self._first.median), self._first.largest - self._first.quantile(0.0), noise, 1e-30)

    def state_dict(self) -> dict[str, Any]:
        """Give the losses and the caution."""
        return {
            "caution": self.caution,
            "first": self._first.state_dict(),
            "last": self._last.state_dict(),
            "changes": self._changes.state_dict(),
            "before": self._before,
            "levels": list(self._levels),
            "outside": self._outside,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.caution, self._before, self._outside = state["caution"], state["before"], state["outside"]
        self._levels = list(state["levels"])
        self._first.load_state_dict(state["first"])
        self._last.load_state_dict(state["last"])
        self._changes.load_state_dict(state["changes"])
