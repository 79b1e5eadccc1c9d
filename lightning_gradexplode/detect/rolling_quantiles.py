"""Quantiles of the last values of a bounded history of finite numbers."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.records.state import Stateful

_QUARTILES_OF_NORMAL = 1.349
"""Distance of the quartiles of a normal distribution, in standard deviations."""


class RollingQuantiles(Stateful):
    """The last finite values, with their median and spread at the cost of one insertion.

    Args:
        size: Number of values kept.

    Attributes:
        count: Number of values there are.
        median: The middle value, NaN without values.
        lower_quartile: The value below which a quarter of them lies, 0 without values.
        spread: A standard deviation by the quartiles' distance (that of a normal distribution is exact).
    """

    not_saved = ("_sorted",)

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        # Plain attributes, since several detectors read them at every step.
        self.count = 0
        self.median = self.spread = math.nan
        self.lower_quartile = 0.0

    def __len__(self) -> int:
        return self.count

    def add(self, value: float) -> None:
        """Add a value, and drop the oldest one if there are too many.

        Raises:
            ValueError: The value is NaN or infinite.
        """
        if not math.isfinite(value):
            raise ValueError(f"only finite values may enter a history, got {value}")
        ordered = self._sorted
        if len(ordered) == self.size:
            del ordered[bisect_left(ordered, self._values.popleft())]
        self._values.append(value)
        insort(ordered, value)
        self.count = len(ordered)
        # `quantile` written out, since there are many histories.
        last = self.count - 1
        at, rest = last >> 2, last & 3
        below = ordered[at]
        self.lower_quartile = below + 0.25 * rest * (ordered[at + 1] - below) if rest else below
        at = last >> 1
        below = ordered[at]
        self.median = below + 0.5 * (ordered[at + 1] - below) if last & 1 else below
        at, rest = 3 * last >> 2, 3 * last & 3
        upper = ordered[at]
        if rest:
            upper += 0.25 * rest * (ordered[at + 1] - upper)
        self.spread = (upper - self.lower_quartile) / _QUARTILES_OF_NORMAL

    @property
    def largest(self) -> float:
        """The largest value."""
        return self._sorted[-1]

    def around(self, share: float) -> tuple[float, float, float, float]:
        """Return what `quantile` depends on if a further value ``x`` is added, and the oldest one dropped if need be.

        Returns:
            ``low, middle, high, weight``: the quantile is that share of the way from ``min(max(x, low), middle)`` to
            ``min(max(x, middle), high)``.
        """
        ordered = list(self._sorted)
        if len(ordered) == self.size:
            del ordered[bisect_left(ordered, self._values[0])]
        place = share * len(ordered)
        at = int(place)
        low, middle, high = [-math.inf, *ordered, math.inf, math.inf][at : at + 3]
        return low, middle, high, place - at

    def quantile(self, share: float) -> float:
        """Return the value below which a share of the values lies, interpolated linearly."""
        place = share * (len(self._sorted) - 1)
        low = int(place)
        below = self._sorted[low]
        return below if low == place else below + (place - low) * (self._sorted[low + 1] - below)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Load what `state_dict` returned.

        Raises:
            ValueError: A value is not finite.
        """
        fresh = super().load_state_dict(state)
        values = list(self._values)[-self.size :]
        self._values.clear()
        self._sorted.clear()
        self.count, self.lower_quartile = 0, 0.0
        for value in values:
            self.add(float(value))
        return fresh
