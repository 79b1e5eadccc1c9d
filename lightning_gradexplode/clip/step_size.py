"""The largest step that is taken, found by what the loss did after earlier ones."""

from __future__ import annotations

import math
from collections import deque

from lightning_gradexplode.clip.loss_trend import LossTrend
from lightning_gradexplode.records.state import Stateful

_FIRST_MOVE = 0.01
"""Share of the weights' norm that the first step may move where the learning rate would move them too far."""

_GROWTH, _SLOW_GROWTH, _SHRINKAGE = 1.3, 1.05, 0.7
"""Factors of the step size: after an improvement, without one, and after eight steps without one."""

_MEMORY = 10.0
"""Steps over which momentum may add up gradients without slower growth; beyond, a step shows in the loss later."""

_HEADROOM = 2.5
"""What a step may move the weights by, over the largest movement that did no harm: gradients vary from step to step."""

_CUT, _CEILING = 0.25, 0.5
"""After a failure: the size that goes on, and the one that is not exceeded, over the size five steps before it."""

_RECOVERY, _RELAXATION = 1.2, 1.01
"""Factors of the step size while the loss comes down, and of the ceiling while training makes progress below it."""

_PATIENCE, _STALL = 20, 30
"""Steps after which a smaller size has not helped, and after which training below the ceiling makes no progress."""


class StepSizeControl(Stateful):
    """A factor of the learning rate, 1.0 as long as there is no evidence against the rate.

    There are two kinds of evidence. A step would move the weights by more than `limit` of their norm: then steps begin
    small, and grow by 30 % with each improvement of the loss up to the learning rate, slower under high momentum. Or
    the loss rises out of the region where it started: then steps shrink until it comes down, and return as before. A
    size that failed while it grew, or twice, is remembered: half of what was good before it becomes a ceiling, which
    rises by a hundredth at each step that makes progress, slower after each failure, and falls where there is no
    progress. Where smaller steps do not bring the loss down in some steps, they are not what it depends on, and the
    factor is given up.

    Args:
        limit: Share of the weights' norm.
    """

    _proven: float | None
    _allowed: float | None
    _ceiling: float | None
    _failed_level: float | None
    _progress_level: float | None

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._trend = LossTrend()
        self._proven = None
        self._least = 0.0
        self._did_harm = False
        self._allowed = None
        self._ceiling = None
        self._used: deque[float] = deque(maxlen=5)
        self._is_growing = False
        self._steps_to_free = 0
        self._warned = 0
        self._failures = 0
        self._grew_into_failure = False
        self._good_before = 0.0
        self._failed_level = None
        self._lowest_since = 0.0
        self._waited = 0
        self._stalled = 0
        self._progress_level = None
        self._largest_move = 0.0
        self._move = 0.0
        self._growth = _GROWTH

    @property
    def is_calm(self) -> bool:
        """Whether the level of the loss is known, and no step has failed so far or is being tried out."""
        tried = self._is_growing or self._ceiling is not None or self._allowed is not None
        return self._trend.has_level and self._failed_level is None and not tried

    @property
    def has_failed(self) -> bool:
        """Whether the loss is out of the region where it was, and the size at which it comes down is looked for."""
        return self._failed_level is not None

    def factor(self, rate: float, move: float, loss: float, memory: float = 1.0) -> float:
        """Return the factor of the learning rate for the coming step.

        Args:
            rate: The learning rate.
            move: Share of the weights' norm by which the step would move them at this rate.
            loss: The loss before the step.
            memory: Number of steps over which momentum adds up gradients, ``1 / (1 - momentum)``.
        """
        self._growth = 1.0 + (_GROWTH - 1.0) * min(1.0, math.sqrt(_MEMORY / memory))
        self._trend.add(loss)
        if not self._trend.has_level:
            return 1.0
        if self._proven is None:
            self._proven = rate if move <= self.limit else rate * _FIRST_MOVE / move
            self._least = self._proven / 4
        if self._failed_level is None:
            self._watch(rate, move)
        else:
            self._recover()
        limits = [limit / rate for limit in (self._allowed, self._ceiling) if limit is not None]
        factor = min(1.0, *limits) if limits else 1.0
        longest = max(self.limit, _HEADROOM * self._largest_move)
        if not self._is_growing and self._failed_level is None and move * factor > longest:
            factor = longest / move
        self._move = move * factor
        self._used.append(rate * factor)
        return factor

    def _watch(self, rate: float, move: float) -> None:
        """Check for a failure; without one increase the size if it has to grow."""
        trend = self._trend
        assert self._proven is not None
        if trend.has_risen() if self._is_growing else trend.has_left_its_region():
            self._fail()
            return
        self._warned = max(0, self._warned - 1)
        did_no_harm = trend.allows_growth()
        if did_no_harm and self._used and trend.steps_without_improvement == 0:
            self._largest_move = min(0.5, max(self._largest_move, self._move))
            self._proven = max(self._proven, self._used[-1])
        is_new = rate > self._proven * (1.0001 if self._is_growing else self._growth)
        if is_new and (self._is_growing or move > self.limit):
            self._grow(did_no_harm)
        else:
            self._allowed = None
            if self._is_growing:
                self._steps_to_free -= 1
                self._is_growing = self._steps_to_free > 0
        if self._ceiling is not None:
            self._follow_progress()

    def _grow(self, did_no_harm: bool) -> None:
        trend = self._trend
        assert self._proven is not None
        if not self._is_growing:
            self._is_growing = True
            trend.compare_from_here()
        self._steps_to_free = 10
        shrinkage = 0.5 if trend.is_worse else 1.0
        self._did_harm = self._did_harm or trend.is_worse
        if trend.steps_without_improvement >= 8:
            trend.restart_patience()
            shrinkage *= _SHRINKAGE if self._did_harm else 1.0  # small steps make progress that noise hides
        if shrinkage < 1.0:
            self._proven = self._allowed = max(self._proven * shrinkage, self._least)
        elif did_no_harm and trend.steps_without_improvement < 4:
            self._allowed = self._proven * (self._growth if trend.steps_without_improvement == 0 else _SLOW_GROWTH)
        else:
            self._allowed = self._proven

    def _fail(self) -> None:
        trend = self._trend
        assert self._proven is not None
        good = self._used[0] if self._used else self._proven
        if self._is_growing or self._warned:
            self._failures += 1
            self._ceiling = good * _CEILING if self._ceiling is None else min(good * _CEILING, self._ceiling)
            self._proven = self._ceiling
        self._grew_into_failure = self._is_growing
        self._did_harm = True
        self._good_before = good
        self._warned = 100
        cut = min(_CUT, max(trend.drop_to_start, 0.03)) if trend.is_finite else 0.01
        self._allowed = (good if self._ceiling is None else min(good, self._ceiling)) * cut
        self._failed_level = self._lowest_since = trend.level
        self._waited = 0

    def _recover(self) -> None:
        """After a failure, find the size at which the loss comes down."""
        trend, level = self._trend, self._trend.level
        assert self._failed_level is not None
        assert self._allowed is not None
        assert self._proven is not None
        self._waited += 1
        if not trend.is_finite:
            self._allowed *= 0.5
        elif trend.has_recovered:
            self._failed_level = None
            self._stalled, self._progress_level = 0, trend.long_level
            trend.compare_from_here()
            self._is_growing, self._steps_to_free = True, 10
            self._proven = min(self._proven, max(self._allowed, self._good_before * 0.5))
            self._least = min(self._least, self._proven / 4)
            self._allowed = self._proven
        elif self._waited >= 3 and level > self._failed_level + 0.3 * abs(self._failed_level):
            self._allowed *= _CUT
            self._failed_level, self._waited = level, 0
        elif level < self._lowest_since:
            self._failed_level = self._lowest_since = level
            self._waited = 0
            self._allowed *= _RECOVERY
            if self._ceiling is not None:
                self._allowed = min(self._allowed, self._ceiling)
        elif self._waited > _PATIENCE:
            self._failed_level = self._allowed = None
            trend.start_again()
            if self._grew_into_failure:
                self._is_growing, self._steps_to_free = True, 10

    def _follow_progress(self) -> None:
        """Raise the ceiling while training makes progress, and lower it where it makes none."""
        assert self._ceiling is not None
        level = self._trend.long_level
        before = level if self._progress_level is None else self._progress_level
        self._stalled += 1
        if self._stalled >= _STALL:
            if level > before:
                self._ceiling *= 0.5
            self._progress_level, self._stalled = level, 0
        elif level < before:
            self._ceiling *= _RELAXATION ** (0.5 ** (self._failures - 1))
