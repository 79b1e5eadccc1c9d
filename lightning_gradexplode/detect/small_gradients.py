"""Gradients that are next to nothing, or exactly zero."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, Severity, StepRecord


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
    zero from the start may be frozen, and counts only where all gradients are zero. Where some are not, and the loss
    has come down from its start, it is only worth knowing: experts that are never chosen look like that.

    Args:
        share: Share of the parameters.
        patience: Steps in a row.
    """

    sign = "zero-gradient"
    reads = ("loss", "grad_norm")

    _never: list[int] | None

    def __init__(self, share: float = 0.5, patience: int = 20) -> None:
        self.share = share
        self.patience = patience
        self._never = None
        self._streaks: list[int] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Count the steps at which each parameter's gradient is zero."""
        baselines = self.baselines(record)
        norms = record.per_parameter.get("grad_norm")
        if norms is None:
            return None
        if norms.all() or record.loss == 0:
            self._never = [] if norms.all() else self._never
            self._streaks = []
            return None
        count = len(norms)
        never = range(count) if self._never is None else self._never
        self._never = [place for place in never if place < count and norms[place] == 0]
        before = self._streaks if len(self._streaks) == count else [0] * count
        self._streaks = [0 if norm else steps + 1 for steps, norm in zip(before, norms.tolist(), strict=True)]
        dead = [place for place, steps in enumerate(self._streaks) if steps >= self.patience]
        if len(dead) < count:
            dead = sorted(set(dead) - set(self._never))
        if not dead or len(dead) < self.share * count:
            return None
        where = None if len(dead) == count else record.parameters[dead[0]]
        which = f"all {count}" if where is None else f"{len(dead)} of {count}"
        message = f"the gradients of {which} parameters have been exactly zero for {self.patience} steps or more"
        learns = where is not None and baselines.loss_rise < -0.1
        severity = Severity.INFO if learns else Severity.WARNING
        return self.finding(record, severity, len(dead) / count, self.share, message, where)
