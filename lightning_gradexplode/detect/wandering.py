"""Random changes of a number without a trend over a number of steps."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records.state import Stateful

LAG = 16
"""Steps between the values whose differences distinguish a walk from noise around a level."""

_MIN_COUNT = 5
_MIN_LONG_COUNT = 3 * LAG
_MIN_DEVIATION = 1e-30
_MEDIAN_OF_NORMAL = 0.6745
_TENTH_OF_NORMAL = 1.645
"""Absolute values of a standard normal distribution that a half and a tenth of its values exceed."""


class Wandering(Stateful):
    """The spread of a number over any number of steps, from its decreases over one step and over `LAG` steps.

    The standard deviation of the difference of two values that are ``n`` steps apart is taken to be ``s * n**h``. A
    random walk has ``h = 1/2``, noise around a level ``h = 0`` (Mandelbrot, Van Ness 1968, fractional noises). Both are
    estimated from the decreases alone, since increases are the explosion as well; until there are enough over `LAG`
    steps, a random walk is assumed.
    """

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._short = RollingQuantiles(100)
        self._long = RollingQuantiles(100)

    def add(self, value: float, calm: float, outside: float) -> None:
        """Record a value.

        Args:
            value: The value.
            calm: A decrease over one step counts only from a value of at most this; others are returns from a spike.
            outside: The same for a decrease over `LAG` steps, which only distinguishes a walk from noise.
        """
        recent = self._recent
        if recent and value < recent[-1] <= calm:
            self._short.add(min(recent[-1] - value, 1e300))
        if len(recent) == LAG and value < recent[0] <= outside:
            self._long.add(min(recent[0] - value, 1e300))
        self._recent = [*recent[1 - LAG :], value]

    def spread(self, steps: int) -> float:
        """Return the standard deviation of the difference of two values that are `steps` apart."""
        short = _deviation(self._short)
        if short <= 0 or steps <= 1:
            return short
        exponent = 0.5
        if len(self._long) >= _MIN_LONG_COUNT:
            exponent = min(max(math.log(_deviation(self._long) / short, LAG), 0.0), 0.5)
        return short * float(steps**exponent)


def _deviation(differences: RollingQuantiles) -> float:
    """Return the larger standard deviation of two: by the median, and by the value that a tenth exceeds."""
    if len(differences) < _MIN_COUNT:
        return 0.0
    return max(differences.median / _MEDIAN_OF_NORMAL, differences.quantile(0.9) / _TENTH_OF_NORMAL, _MIN_DEVIATION)
