"""The step size after a failure, until the loss has decreased or stays at its new level."""

from __future__ import annotations

from lightning_gradexplode.clip.step_size.loss_trend import LossTrend
from lightning_gradexplode.records.state import Stateful

CUT = 0.25
"""Factor of the step size at a failure, and at each further rise of the loss."""

_GROWTH = 1.2
"""Factor of the step size at each new minimum of the loss."""

_PATIENCE = 20
"""Number of steps without a further rise, after which the loss counts as its new level."""


class Recovery(Stateful):
    """The course of the loss since a failure."""

    def __init__(self) -> None:
        self._level = self._lowest = 0.0
        self._steps = self._steps_without_rise = 0

    def begin(self, level: float) -> None:
        """Begin at a failure, with the level of the loss."""
        self._level = self._lowest = level
        self._steps = self._steps_without_rise = 0

    def factor(self, trend: LossTrend) -> float | None:
        """Return the factor of the step size for the coming step, None if the recovery has ended.

        Args:
            trend: The losses so far. If the loss stays at a new level, they start again from there.
        """
        self._steps += 1
        self._steps_without_rise += 1
        if not trend.is_finite:
            self._steps_without_rise = 0
            return 0.5
        level = trend.level
        if trend.has_recovered:
            return None
        if self._steps >= 3 and level > self._level + 0.3 * abs(self._level):
            self._level, self._steps, self._steps_without_rise = level, 0, 0
            return CUT
        if self._steps_without_rise > _PATIENCE:
            trend.start_again()
            return None
        if level < self._lowest:
            self._level = self._lowest = level
            self._steps = 0
            return _GROWTH
        return 1.0
