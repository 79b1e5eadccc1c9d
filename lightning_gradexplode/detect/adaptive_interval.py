"""The interval at which the weights are measured: short while they change, long while they do not."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records.state import Stateful


class AdaptiveInterval(Stateful):
    """The interval at which the norms of the weights are measured.

    A measurement takes a quarter of the time of gradient clipping. There is one at the first step; then at intervals
    that double up to `longest`, as long as the norm changes by at most `change`, and at the next step otherwise; and at
    every step whose loss or gradient norm is not finite or unusually large, so that the effect of such a step on the
    weights is known at once.

    Args:
        longest: The longest interval in steps; at the default, the mean cost per step is a thirtieth of clipping.
        change: Relative change of the norm since the last measurement that resets the interval.
        window: Number of steps that a loss and a gradient norm are compared with.
    """

    _last: float | None

    def __init__(self, longest: int = 8, change: float = 0.05, window: int = 32) -> None:
        self.longest = longest
        self.change = change
        self._gap = 1
        self._wait = 0
        self._last = None
        self._norms = RollingQuantiles(window)
        self._losses = RollingQuantiles(window)

    @property
    def has_no_measurement(self) -> bool:
        """Whether the weights were never measured, so that they must be measured before the next step."""
        return self._last is None

    @property
    def overdue(self) -> bool:
        """Whether the weights are to be measured after the coming step, regardless of its loss and gradient norm."""
        return self._wait <= 1

    def missed(self) -> None:
        """Schedule a measurement of the weights after the next step, since it is too late for this one."""
        self._wait = 0

    def due(self, loss: float | None, norm: float | None) -> bool:
        """Return whether the weights are to be measured after this step; to be called once per step, before it.

        Args:
            loss: The loss of the step.
            norm: Its gradient norm.
        """
        self._wait -= 1
        unusual_norm = unusual_loss = False
        if norm:
            unusual_norm = not norm < math.inf or _is_unusual(self._norms, math.log(norm), math.log(2.0))
        if loss is not None:
            unusual_loss = not math.isfinite(loss) or _is_unusual(self._losses, loss, 0.0)
        return unusual_norm or unusual_loss or self._wait <= 0

    def is_steady(self, norm: float) -> bool:
        """Return whether the weights' norm has changed by at most `change` since the last measurement."""
        return self._last is not None and abs(norm - self._last) <= self.change * self._last

    def measured(self, norm: float) -> None:
        """Record the weights' norm, and choose the interval to the next measurement."""
        if not math.isfinite(norm):
            return
        self._gap = min(2 * self._gap, self.longest) if self.is_steady(norm) else 1
        self._wait = self._gap
        self._last = norm


def _is_unusual(history: RollingQuantiles, value: float, least: float) -> bool:
    """Return whether a finite value is above the median by four deviations and by `least`, and record it."""
    unusual = history.count >= 8 and value - history.median > max(4 * history.spread, least)
    history.add(value)
    return unusual
