"""Gradients that are next to nothing, or exactly zero."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, Severity, StepRecord

BoolArray = npt.NDArray[np.bool_]


class VanishingGradient(Detector):
    """The gradients are next to nothing: the opposite trouble, never CRITICAL.

    Compared are the gradient norm times the norm of the weights with the size of the loss: to first order, weights that
    changed by as much as they are large would change the loss by less than `limit` of it. Unlike a limit of the norm,
    this holds for a loss of any scale, and not for one that has converged to zero, whose gradients shrink more slowly
    than it does. The limit is the precision of float32.

    Args:
        limit: Change of the loss, over its size, below which gradients count as vanished.
        patience: Steps in a row.
    """

    sign = "vanishing-gradient"
    reads = ("loss", "grad_norm")

    def __init__(self, limit: float = 1e-7, patience: int = 20) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with its loss."""
        norm, loss = record.grad_norm, record.loss
        assert norm is not None
        assert loss is not None
        change = norm * self.baselines(record).weights.norm
        self._streak = self._streak + 1 if 0 < change < self.limit * abs(loss) < math.inf else 0
        if self._streak < self.patience:
            return None
        message = (
            f"the gradient norm is {norm:.3g}: weights that changed by as much as they are large would change the loss "
            f"by {change:.3g}, of {loss:.3g}"
        )
        return self.finding(record, Severity.WARNING, change / abs(loss), self.limit, message)


class ZeroGradient(Detector):
    """All or most gradients are exactly zero: no step changes anything, and no later one will.

    A WARNING if all parameters, or `share` of them that had other gradients before, had gradients of exactly zero at
    `patience` steps in a row while the loss was not zero. Rectified units that are never active make such gradients, a
    loss that is detached from the network, or a criterion that ignores every target. A parameter whose gradient was
    zero from the start may be frozen or unused, and counts only where all gradients but one are zero (that of the last
    bias, behind units that are never active) and nothing is learned for `futile` steps. Where some gradients are not
    zero, and the loss is a tenth of a unit below its start at any of the last `patience` steps, it is only worth
    knowing: experts that are never chosen look like that. Parameters whose gradient is zero now and again, as that of
    sparse experts is, count only once it has been so three times as long as ever before.

    Args:
        share: Share of the parameters.
        patience: Steps in a row.
        futile: Steps in a row without a lower loss, after which parameters count that never had a gradient.
    """

    sign = "zero-gradient"
    reads = ("loss", "grad_norm")

    _never: list[int] | None

    def __init__(self, share: float = 0.5, patience: int = 20, futile: int = 100) -> None:
        self.share = share
        self.patience = patience
        self.futile = futile
        self._futile_for = 0
        self._never = None
        self._streaks: list[int] = []
        self._longest: list[int] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Count the steps at which each parameter's gradient is zero."""
        baselines = self.baselines(record)
        norms = record.per_parameter.get("grad_norm")
        if norms is None:
            return None
        if norms.all() or record.loss == 0:
            if self._streaks:
                self._count(np.ones(len(norms), dtype=bool))
            self._never = [] if norms.all() else self._never
            return None
        count = len(norms)
        self._futile_for = 0 if baselines.loss_rise < -0.1 else self._futile_for + 1
        never = range(count) if self._never is None else self._never
        self._never = [place for place in never if place < count and norms[place] == 0]
        self._count(norms != 0)
        both = zip(self._streaks, self._longest, strict=True)
        dead = [place for place, (streak, longest) in enumerate(both) if streak >= max(self.patience, 3 * longest)]
        is_futile = self._futile_for >= self.futile and len(dead) == count - 1 > 1
        if len(dead) < count and not is_futile:
            dead = sorted(set(dead) - set(self._never))
        if not dead or len(dead) < self.share * count:
            return None
        where = None if len(dead) == count else record.parameters[dead[0]]
        which = f"all {count}" if where is None else f"{len(dead)} of {count}"
        message = f"the gradients of {which} parameters have been exactly zero for {self.patience} steps or more"
        learns = where is not None and self._futile_for < self.patience
        severity = Severity.INFO if learns else Severity.WARNING
        return self.finding(record, severity, len(dead) / count, self.share, message, where)

    def _count(self, alive: BoolArray) -> None:
        """Count the steps in a row at which each parameter's gradient is zero, and remember the longest such row."""
        if len(self._streaks) != len(alive):
            self._streaks, self._longest = [0] * len(alive), [0] * len(alive)
        for place, lives in enumerate(alive.tolist()):
            if lives:
                self._longest[place] = max(self._longest[place], self._streaks[place])
                self._streaks[place] = 0
            else:
                self._streaks[place] += 1
