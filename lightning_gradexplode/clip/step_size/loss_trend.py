"""The trend of the loss: where it started, how noisy it is, and where it is now."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from lightning_gradexplode.records.state import Stateful

_NORMAL_SECOND_DIFFERENCE = 1.65
"""Median absolute second difference of independent normal numbers, in standard deviations (0.6745 * sqrt(6))."""

_NOISY = 0.25
"""Standard deviation of losses at the same weights, divided by their level, above which medians are compared."""


class LossTrend(Stateful):
    """The losses of a run: where they started, how noisy they are, their lowest level, and where they are now.

    All limits are relative to the size and the noise of the losses, so that their unit and sign do not matter.
    """

    not_saved = ("is_finite", "is_worse")
    _lowest: float | None
    _recovered: float | None
    _forgiven: float | None

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=10)
        self._long: deque[float] = deque(maxlen=20)
        self._differences: deque[float] = deque(maxlen=30)
        self._lowest = None
        self._recovered = None
        self._forgiven = None
        self._unexplained: deque[float] = deque(maxlen=30)  # second differences that no step can have caused
        self._excess = 0.0
        self._stale = 0
        self.is_finite = True
        self.is_worse = False

    def add(self, loss: float, explained: float = math.inf, caused: float = math.inf) -> None:
        """Add the loss of a step.

        Args:
            loss: The loss.
            explained: The largest rise that the last steps can have caused. A larger one that leaves the region comes
                from other data or another objective: the losses before it are discarded.
            caused: The largest second difference of losses that the last two steps can have caused.
        """
        self.is_finite = math.isfinite(loss)
        if not self.is_finite:
            return
        if self._forgiven is not None and loss <= self._forgiven:
            self._forgiven = None
        is_new = len(self._first) == 5 and loss - self._last[-1] > explained and self._forgiven is None
        if is_new and loss > min(self._jump, self.start + self._margin):
            self._forgiven = (loss + self._last[-1]) / 2
            self._forget()
        if len(self._last) >= 2:  # second differences remove a linear trend
            self._differences.append(min(abs(loss - 2 * self._last[-1] + self._last[-2]), 1e300))
            if caused < abs(loss):
                self._unexplained.append(max(0.0, self._differences[-1] - caused))
        self._last.append(loss)
        self._long.append(loss)
        if len(self._first) < 5:
            self._first.append(loss)
        level = self.level
        improved = self._lowest is None or level <= self._lowest or len(self._last) < 6
        self._stale = 0 if improved else self._stale + 1
        self._lowest = level if self._lowest is None else min(self._lowest, level)

    @property
    def level(self) -> float:
        """The present level of the loss: the median of the last three."""
        last = list(self._last)[-3:]
        return median(last) if len(last) == 3 else min(last)

    @property
    def is_noisy(self) -> bool:
        """Whether losses differ by more than a quarter of their size, and no step can have caused the differences.

        The lowest of such losses is far below their level, and single ones are far above it. Medians of ten losses are
        compared instead.
        """
        if not self.is_known or len(self._unexplained) < 4:
            return False
        of_samples = median(self._unexplained) / _NORMAL_SECOND_DIFFERENCE
        return min(self._noise, of_samples) > _NOISY * abs(self.long_level)

    @property
    def is_no_worse(self) -> bool:
        """Whether the median of the last ten losses is not above that of the ten before."""
        return median(self._last) <= self._before

    @property
    def _all_are_above(self) -> bool:
        """Whether all of the last ten losses are above the median of the ten before.

        By chance this is so once in 1,024 windows at most, whatever the distribution of the losses (sign test).
        """
        return len(self._long) == 20 and min(self._last) > self._before

    @property
    def _before(self) -> float:
        return median([*self._long][:-10] or self._long)

    @property
    def long_level(self) -> float:
        """Median of the last twenty losses."""
        return median(self._long)

    @property
    def start(self) -> float:
        """Where the loss started: the median of the first five."""
        return sorted(self._first)[len(self._first) // 2] if len(self._first) == 5 else self._first[0]

    @property
    def steps_without_improvement(self) -> int:
        """Number of steps since the level was last the lowest; 0 during the first five."""
        return self._stale

    def restart_patience(self) -> None:
        """Count the steps without improvement from 0 again."""
        self._stale = 0

    @property
    def has_level(self) -> bool:
        """Whether there is any loss."""
        return bool(self._last)

    @property
    def is_known(self) -> bool:
        """Whether there are enough losses to estimate their noise."""
        return len(self._differences) >= 4

    @property
    def has_recovered(self) -> bool:
        """Whether the level is back near where it was before the last failure."""
        return self._recovered is not None and self.level <= self._recovered

    def compare_from_here(self) -> None:
        """Set the lowest level to the median of the last losses."""
        self._lowest = median(self._last)

    def start_again(self) -> None:
        """Use the last losses as the start, since the loss does not return to its earlier level."""
        self._first = list(self._last)[-5:]
        self.compare_from_here()

    def allows_growth(self) -> bool:
        """Return whether the last step did no harm: the loss is near its lowest level."""
        if not self.is_finite or self._lowest is None:
            return False
        if self.is_noisy:
            self.is_worse = self._all_are_above
            return not self.is_worse
        noise = self._noise if self.is_known else 0.03 * abs(self._lowest)
        margin = max(0.02 * abs(self._lowest), 2 * noise)
        worse = max(0.25 * abs(self._lowest), 6 * noise) if self.is_known else abs(self._lowest)
        self.is_worse = self._last[-1] > self._lowest + worse
        return self.level <= self._lowest + margin and self._last[-1] <= self._lowest + 2 * margin

    @property
    def rise(self) -> float:
        """How far the level is above its lowest one."""
        return self.level - (self.level if self._lowest is None else self._lowest)

    @property
    def clear_change(self) -> float:
        """The smallest change that is not noise: a quarter of the lowest level, or six times the noise if larger."""
        noise = 6 * self._noise if self.is_known else 5 * max(map(abs, self._last))
        return max(0.25 * abs(self._lowest or 0.0), noise)

    def has_risen(self) -> bool:
        """Return whether the loss is clearly above its lowest level."""
        if not self.is_finite:
            return True
        assert self._lowest is not None
        self._recovered = self._lowest + 0.5 * self.clear_change
        return self.rise > self.clear_change and (self._all_are_above or not self.is_noisy)

    def has_left_its_region(self) -> bool:
        """Return whether the loss is clearly above where it started, or jumps away from there.

        A rise that was reversed without a failure is no evidence: later rises must exceed it by half.
        """
        if not self.is_finite:
            return True
        if len(self._last) > 1 and self._last[-1] > self._last[-2] > self._jump:
            self._recovered = self._low + 0.5 * max(0.5 * self._size, self._known_noise)
            return True
        if len(self._first) < 5:
            return False
        margin = self._margin
        self._recovered = self.start + 0.5 * margin
        above = median(list(self._last)[-5:]) - self.start
        if above <= margin:
            self._excess = max(self._excess, above)
        return above > margin

    @property
    def _known_noise(self) -> float:
        return self._noise if self.is_known else 0.0

    @property
    def _margin(self) -> float:
        """How far above its start the loss may stay."""
        spread = max(self._first) - min(self._first)
        return max(0.5 * abs(self.start), 8 * self._known_noise, 2 * spread, 1.5 * self._excess)

    @property
    def _low(self) -> float:
        """The second lowest of the first losses; the very first while there are fewer than three."""
        return sorted(self._first)[1] if len(self._first) > 2 else self._first[0]

    @property
    def _jump(self) -> float:
        """The limit above which a rising loss counts as a jump away from its start."""
        noise = 12 * self._noise if len(self._differences) >= 10 else 0.0
        return self._low + max(2 * self._size, noise, 1.5 * self._excess)

    @property
    def _size(self) -> float:
        """The size of the first losses; if they have both signs, their range."""
        least, most = min(self._first), max(self._first)
        return most - least if least <= 0 <= most else abs(self._low)

    def _forget(self) -> None:
        self._first, self._lowest, self._stale, self._excess = [], None, 0, 0.0
        for values in (self._last, self._long, self._differences, self._unexplained):
            values.clear()

    @property
    def drop_to_start(self) -> float:
        """The start divided by the last loss, in absolute values; small after a jump far above the start."""
        return abs(self.start) / max(abs(self._last[-1]), 1e-300)

    @property
    def _noise(self) -> float:
        return median(self._differences) / _NORMAL_SECOND_DIFFERENCE
