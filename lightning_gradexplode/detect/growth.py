"""Growth of a number: whether it keeps rising, at which rate, and after how many steps it reaches a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_gradexplode.records.state import Stateful

WINDOW = 8
"""Number of values that are tested for a rise."""

_LARGEST = 1e300
"""Limit of absolute values, so that sums of several stay finite."""

MAX_INVERSIONS = 2
"""Maximum number of falling pairs: of the 40,320 orders of 8 values, 35 have at most two, which is 0.09 %."""


def keeps_rising(values: Sequence[float]) -> bool:
    """Return whether the last `WINDOW` values rise, with at most `MAX_INVERSIONS` pairs that do not.

    This is the rank test of Mann (1945) and Kendall, which assumes nothing about the distribution of the values: in
    independent values without a trend it finds one at 0.09 % of the steps.
    """
    if len(values) < WINDOW:
        return False
    recent = values[-WINDOW:]
    falls = sum(later <= earlier for place, earlier in enumerate(recent) for later in recent[place + 1 :])
    return falls <= MAX_INVERSIONS


class Trend(Stateful):
    """Whether a noisy number keeps rising or falling: `keeps_rising` over means of several steps each.

    Args:
        size: Number of steps that each mean is taken of.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._sum = 0.0
        self._count = 0
        self._means: list[float] = []

    def add(self, value: float) -> None:
        """Add a finite value."""
        self._sum += min(max(value, -_LARGEST), _LARGEST)
        self._count += 1
        if self._count == self.size:
            self._means = [*self._means[-WINDOW:], self._sum / self.size]
            self._sum, self._count = 0.0, 0

    @property
    def rises(self) -> bool:
        """Whether the means keep rising."""
        return keeps_rising(self._means)

    @property
    def falls_faster(self) -> bool:
        """Whether the means keep falling, and the falls from one to the next keep growing.

        Both are tested by rank (`keeps_rising`): means that fall by the same amount each time, with noise, pass the
        second test as seldom as values without a trend.
        """
        falls = [earlier - later for earlier, later in pairwise(self._means)]
        return keeps_rising([-mean for mean in self._means]) and keeps_rising(falls)

    @property
    def rate(self) -> float:
        """The change per step of the logarithm of one plus the means, over their later half."""
        sizes = [1 + max(mean, 0.0) for mean in self._means[-WINDOW // 2 :]]
        return math.log(sizes[-1] / sizes[0]) / (self.size * (len(sizes) - 1)) if len(sizes) > 1 else 0.0


class GrowthRate(Stateful):
    """The rate at which a positive number grows per step, over the last steps and since the start of the run.

    The logarithm of a number that grows by a constant factor grows as fast over the last steps as since the start. That
    of a number that approaches a level, or grows linearly, grows more slowly.

    Args:
        size: Number of measurements that the recent rate is taken from.
    """

    _first: int | None

    def __init__(self, size: int = WINDOW) -> None:
        self.size = size
        self._first = None
        self._steps: list[int] = []
        self._logarithms: list[float] = []

    def add(self, step: int, growth: float) -> None:
        """Add a measurement: how many times its start the number is."""
        if not 0 < growth < math.inf:
            return
        self._first = step if self._first is None else self._first
        self._steps = [*self._steps[1 - self.size :], step]
        self._logarithms = [*self._logarithms[1 - self.size :], math.log(growth)]

    @property
    def rate(self) -> float:
        """The logarithm of the factor by which the number has grown per step, over the last measurements."""
        steps = self._steps[-1] - self._steps[0] if self._steps else 0
        return (self._logarithms[-1] - self._logarithms[0]) / steps if steps > 0 else 0.0

    @property
    def is_geometric(self) -> bool:
        """Whether the logarithm of the number has grown over the last steps at least as fast as since the start."""
        if self._first is None or len(self._steps) < 3:
            return False
        since_start = self._logarithms[-1] / (self._steps[-1] - self._first + 1)
        return self.rate >= since_start > 0

    def steps_until(self, growth: float) -> float:
        """Return the number of steps until the number is `growth` times its start, at the recent rate."""
        missing = math.log(growth) - self._logarithms[-1] if self._logarithms else math.inf
        return max(missing, 0.0) / self.rate if self.rate > 0 else math.inf
