"""Whether a rise of the loss above its start is geometric, as in an explosion, or slower."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradexplode.records.state import Stateful

_STRAIGHT = 0.55
"""Mean of a logarithm divided by its last value up to which the growth of a number from one is geometric. It is a half
for growth by a constant factor (a tenth of that is added for noise), and 0.63 to 0.68 for linear growth to 5 to 10."""

_LAST = 3
"""Number of values whose median is used as the last value."""


class Excursion(Stateful):
    """The steps since the loss was last at its start or below.

    Attributes:
        steps: Number of these steps; 0 while the loss is at its start or below.
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

        The mean of the logarithm of one plus the rise, over the steps of the excursion, is compared with its value at
        the second last step (the median of the last three). For geometric growth the mean is at most half of it. It is
        larger for linear growth, such as of a loss term with a growing weight, and near the maximum of a periodic loss.
        """
        if self.steps < _LAST:
            return False
        area = self._sum - self._last[-1] - self._last[-2] / 2
        return area / (self.steps - 1) <= _STRAIGHT * median(self._last)
