"""Bounded histories of finite numbers: quantiles of the last values, and moving averages of gradient norms."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_gradexplode.records import FloatArray
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


class GradNormEMA(Stateful):
    """The usual gradient norm of each parameter: a moving average of its logarithm over calm steps.

    Args:
        decay: Weight of the past at each step; 0.97 averages over about 33 steps.
    """

    not_saved = ("_complete",)

    def __init__(self, decay: float = 0.97) -> None:
        self.decay = decay
        self._levels: FloatArray = np.zeros(0)
        self._complete = False

    def rises(self, norms: FloatArray) -> FloatArray:
        """Return the natural logarithm of each norm over its usual level.

        Returns:
            Shape ``(parameters,)``; NaN for a norm that is zero or NaN, and where no level is known yet.
        """
        if len(self._levels) != len(norms):
            return np.full_like(norms, np.nan)
        rises: FloatArray = _logarithms(norms) - self._levels
        return rises

    def update(self, norms: FloatArray) -> None:
        """Add a calm step's norms; zero, NaN and infinite ones are ignored."""
        if len(self._levels) != len(norms):
            self._levels, self._complete = np.full_like(norms, np.nan), False
        if self._complete and norms.min() > 0.0 and norms.max() < math.inf:  # as nearly always
            self._levels += (1 - self.decay) * (np.log(norms) - self._levels)
            return
        logs = _logarithms(norms)
        moved = np.where(np.isnan(self._levels), logs, self._levels + (1 - self.decay) * (logs - self._levels))
        self._levels = np.where(np.isfinite(logs), moved, self._levels)
        self._complete = len(norms) > 0 and bool(np.isfinite(self._levels).all())


def _logarithms(norms: FloatArray) -> FloatArray:
    """Return natural logarithms, NaN for norms of zero or NaN."""
    if norms.min(initial=1.0) > 0.0:  # as nearly always; a NaN is no minimum
        return np.log(norms)
    return np.log(norms, out=np.full_like(norms, np.nan), where=norms > 0)
