"""Whether loss, gradients and weights grow together, as they do early in a self-reinforcing explosion."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.records.state import Stateful


class JointGrowth(Stateful):
    """The rates at which loss, gradient norm and norm of the weights have grown together over the last steps.

    Larger weights have larger gradients and losses, and larger gradients change the weights more: the three grow
    together long before one of them is unusual by itself. Each of them alone also grows in healthy runs: gradients when
    a plateau is left, weights in most runs that learn, and the loss with other data.

    A straight line is fitted to the logarithms of the last `window` steps. In noise without a trend, the slope of one
    is more than two standard errors above zero in 2.9 % of all windows (Student's t with 22 degrees of freedom), and
    those of loss and gradients both in 0.09 %, if they are independent. The growth of the weights, which have hardly
    any noise, is that from the first to the last step.

    Args:
        window: Number of steps.
        least: Least growth per step of each of the three, in its logarithm.
        errors: Standard errors that the slopes of loss and gradients must be above zero.
    """

    def __init__(self, window: int = 24, least: float = 0.01, errors: float = 2.0) -> None:
        self.window = window
        self.least = least
        self.errors = errors
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._weights: list[float] = []

    def update(self, rise: float, norm: float, weights: float) -> None:
        """Record a step.

        Args:
            rise: Units that the loss is above its start; a negative rise counts as 0.
            norm: The gradient norm, positive and finite.
            weights: Growth of the weights since the start of the run.
        """
        self._losses = [*self._losses[1 - self.window :], 1 + rise if rise > 0 else 1.0]
        self._norms = [*self._norms[1 - self.window :], norm]
        self._weights = [*self._weights[1 - self.window :], weights]

    def rates(self) -> tuple[float, float, float] | None:
        """Return the growth per step of loss, gradients and weights in their logarithms, None if one does not grow."""
        if len(self._weights) < self.window or not 0 < self._weights[0] < self._weights[-1] or self._losses[-1] <= 1:
            return None
        weights = (math.log(self._weights[-1]) - math.log(self._weights[0])) / (self.window - 1)
        if weights < self.least:
            return None
        losses, norms = (self._significant(values) for values in (self._losses, self._norms))
        return (losses, norms, weights) if min(losses, norms) >= self.least else None

    def _significant(self, values: Sequence[float]) -> float:
        """Return the rate of growth, 0 if it is within the standard errors."""
        rate, error = fitted_slope(values)
        return rate if rate > self.errors * error else 0.0


def fitted_slope(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of a straight line fitted to the logarithms by least squares, and its standard error.

    Args:
        values: At least three positive numbers, one for each step.
    """
    count = len(values)
    logarithms = [math.log(value) for value in values]
    mean = sum(logarithms) / count
    places = [place - (count - 1) / 2 for place in range(count)]
    squares = sum(place * place for place in places)
    slope = sum(place * value for place, value in zip(places, logarithms, strict=True)) / squares
    residuals = sum((value - mean - slope * place) ** 2 for place, value in zip(places, logarithms, strict=True))
    return slope, math.sqrt(residuals / (count - 2) / squares)
