"""How the loss has risen since it was last at its start: geometrically, as an explosion does, or ever more slowly."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradexplode.records.state import Stateful

_STRAIGHT = 0.55
"""Mean of a logarithm over its last value, for a number that starts at one: half where the number grows by the same
factor at each step (a tenth is added for noise), and 0.63 to 0.68 where it grows to 5 to 10 by the same amounts."""

_LAST = 3
"""Number of last values whose median is used for the last one."""


class Excursion(Stateful):
    """The steps since the loss was last at its start or below.

    There is none while the loss is at its start or below.

    Attributes:
        steps: Number of these steps.
    """

    also_saved = ("steps",)

    def __init__(self) -> None:
        self.steps = 0
        self._sum = 0.0
        self._last: list[float] = []
        self._weights = 1.0

    def update(self, rise: float, weights: float) -> None:
        """Record a step.

        Args:
            rise: Units that the loss is above its start; finite.
            weights: Growth of the weights since the start of the run.
        """
        if rise <= 0:
            self.steps, self._sum, self._last, self._weights = 0, 0.0, [], weights
            return
        self.steps += 1
        self._sum += math.log1p(rise)
        self._last = [*self._last[1 - _LAST :], math.log1p(rise)]

    def growth_of(self, weights: float) -> float:
        """Return the growth of the weights in these steps.

        Args:
            weights: Growth of the weights since the start of the run.
        """
        return weights / self._weights if self._weights > 0 else weights

    @property
    def is_geometric(self) -> bool:
        """Whether the loss rises by the same factor at each step or faster.

        The logarithm of one plus the rise is compared at the last step but one (as the median of the last three) with
        its mean since it was zero, which is then half of it or less. The mean is larger for a loss that rises by the
        same amount at each step, such as one whose weight is ramped, and for one that nears the maximum of a period.
        """
        if self.steps < _LAST:
            return False
        area = self._sum - self._last[-1] - self._last[-2] / 2
        return area / (self.steps - 1) <= _STRAIGHT * median(self._last)
