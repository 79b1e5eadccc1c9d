"""Control of the step size by the changes of the loss after earlier steps."""

from __future__ import annotations

import math
from collections import deque

from lightning_gradexplode.clip.ceiling import Ceiling
from lightning_gradexplode.clip.loss_trend import LossTrend
from lightning_gradexplode.clip.planned_step import PlannedStep
from lightning_gradexplode.records.state import Stateful

_DECREASE = 0.25
"""Share of the loss by which a harmless step may reduce it if it were linear. On a quadratic loss of one weight with a
minimum of zero, the best step would reduce it by two times the loss, and steps diverge from four times the loss on; of
many weights, a small part of the gradient is in the direction that diverges first."""

_EXPLAINED = 10.0
"""Largest rise of the loss that steps can have caused, divided by their decrease of a linear loss. On a quadratic
loss a step causes a larger one only if its learning rate is eleven times that above which steps diverge."""

_TINY = 0.1
"""Share of `limit`. After five steps that moved the weights less, a rise of the loss above its start is a failure only
if it is more than ten times the decrease of a linear loss by one of them: a loss that starts near zero, or that is
mostly noise, rises by as much in healthy runs."""

_NEGLIGIBLE = 0.1
"""Steps that would reduce a linear loss by less than this share of a clear change have no visible effect."""

_FIRST = 1 / 15
"""The first step divided by a harmless one, if the learning rate makes a larger step: the weights change by 1 % instead
of 15 %."""

_GROWTH, _SLOW_GROWTH, _SHRINKAGE = 1.3, 1.05, 0.7
"""Factors of the step size: after an improvement, without one, and after eight steps without one."""

_IN_NOISE = 0.3
"""Exponent of the growth while the loss is noisy: medians of ten losses show the effect of a step five steps late."""

_MOST_FRUITLESS = 4
"""Maximum number of times that steps are shortened without an improvement, to a quarter of their size."""

_MEMORY = 10.0
"""Number of steps over which momentum may add up gradients without slower growth; with more steps, the loss shows the
effect of a step later."""

_HEADROOM = 2.5
"""Largest allowed movement of the weights divided by the largest one that did no harm, since gradients vary from step
to step."""

_CUT, _RECOVERY = 0.25, 1.2
"""Factors of the step size at a failure, and at each new minimum of the loss while it decreases."""

_PATIENCE = 20
"""Number of steps without a further rise after a failure, after which the loss counts as its new level."""


class StepSizeControl(Stateful):
    """A factor of the learning rate, 1.0 as long as there is no evidence against the rate.

    It is in one of three phases:

    - Free: the rate is used. A step that would move the weights by more than `limit` of their norm, and reduce the loss
      by more than a quarter if it were linear, starts the growing phase if the rate is a new one, and is shortened
      otherwise.
    - Growing: the size of steps, small at first, grows by 30 % with each improvement of the loss, slower with high
      momentum, and shrinks without any. The phase ends ten steps after the size has reached the learning rate.
    - Recovering: after a failure, steps are small until the loss has decreased or is constant; then they grow.

    While free or recovering, no step may move the weights much further than a harmless one, or than those that have
    done no harm since the last failure: the gradients after an explosion are so large that any fixed share of the
    last step can be too large. While growing, the improvement of the loss limits the size of steps.

    A failure is a loss that leaves the region where it started (in the growing phase, that rises), or no improvement
    while most steps are shortened or far from harmless. A size that failed while it grew, or twice within a hundred
    steps, sets a ceiling.

    A rise of the loss is attributed to the last steps only if it is at most ten times the decrease of a linear loss by
    these steps: a larger rise comes from other data or another objective. In the free phase, after steps that moved the
    weights little, a smaller rise is no failure either: a loss that starts near zero rises by as much.

    The lowest of noisy losses is far below their level, whatever the last steps did. If losses differ by more than the
    steps can have caused, medians of ten losses are compared instead, and until a first failure steps grow slowly as
    long as the last median is not above the one before. Steps that are too small for a visible decrease are not
    shortened when there is none: they grow until their effect is visible.

    Args:
        limit: Share of the weights' norm.

    Attributes:
        reason: Why steps are shortened, if they are.
    """

    _proven: float | None
    _allowed: float | None

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._trend = LossTrend()
        self._ceiling = Ceiling()
        self._phase = "free"
        self._proven = None  # the largest size, a learning rate, after which the loss improved
        self._least = 0.0  # lower limit of the size while it shrinks
        self._allowed = None  # the largest size at present, None for any
        self._sizes: deque[float] = deque(maxlen=5)
        self._decreases: deque[float] = deque(maxlen=5)
        self._moves: deque[float] = deque(maxlen=5)  # over the norm of the weights, infinite where they are not known
        self._largest_move = 0.0
        self._shortened = self._large = 0  # recent steps that were shortened, and that may do harm
        self._did_harm = False
        self.reason = "earlier steps have failed"
        self._planned = self._planned_since_lowest = 0.0  # decreases of a linear loss by the steps without improvement
        self._steps_to_free = 0
        self._steps_to_forget = 0
        self._fruitless = 0  # times that steps were shortened, or could have been, without an improvement since
        self._begins_small = False
        self._good = 0.0  # the size before the last failure
        self._level = self._lowest = 0.0  # of the loss since the last failure
        self._steps = self._steps_without_rise = 0

    @property
    def largest(self) -> float | None:
        """The largest size, a learning rate, of the last steps and before a failure; None before the first step."""
        sizes = [*self._sizes, *([self._good] if self._phase == "recovering" else [])]
        return max(sizes, default=None)

    @property
    def is_free(self) -> bool:
        """Whether the scheduled rate is used, apart from single steps."""
        return self._phase == "free"

    def limit_to(self, size: float) -> None:
        """Limit steps to a size, and start again from a small one."""
        self._ceiling.limit_to(size)
        self._proven, self._begins_small = None, True
        self.reason = f"steps begin small after a rollback, and stay below a learning rate of {size:.3g}"

    @property
    def is_calm(self) -> bool:
        """Whether the level of the loss is known, no step has failed, and the step size is not limited."""
        is_limited = self._ceiling.is_set or self._allowed is not None
        return self._trend.has_level and self._phase == "free" and not is_limited

    @property
    def has_failed(self) -> bool:
        """Whether the loss has left its region, and steps are kept small until it decreases."""
        return self._phase == "recovering"

    def factor(self, step: PlannedStep, loss: float) -> float:
        """Return the factor of the learning rate for the coming step.

        Args:
            step: The coming step.
            loss: The loss before it.
        """
        excess = self._excess(step, loss)
        is_harmless = excess <= 1.0 and len(self._decreases) > 0
        caused = _EXPLAINED * sum([*self._decreases][-2:]) if self._decreases else math.inf
        self._trend.add(loss, _EXPLAINED * max(self._decreases) if is_harmless else math.inf, caused)
        if not self._trend.has_level:
            return 1.0
        self._count_planned()
        if self._proven is None:
            self._begin(step, excess)
        if self._phase == "recovering":
            self._recover()
        elif self._step_has_failed():
            self._fail()
        else:
            self._go_on(step, excess > 1.0)
        factor = self._limited(step, excess)
        self._large = min(self._large + 1, 25) if excess * factor > 1.0 else max(self._large - 1, 0)
        self._moves.append(math.inf if step.decrease is None else step.move * factor)
        self._sizes.append(step.rate * factor)
        self._decreases.append(math.inf if step.decrease is None else step.decrease * factor)
        return factor

    def _begin(self, step: PlannedStep, excess: float) -> None:
        """Begin with the learning rate, or with a smaller one if a step at that rate may do harm."""
        is_harmless = excess <= 1.0 and not self._begins_small
        self._proven = step.rate if is_harmless else min(self._ceiling.size, step.rate / max(excess, 1.0)) * _FIRST
        self._least = self._proven / 4
        if self._begins_small:
            self._begins_small, self._phase, self._allowed = False, "growing", self._proven
            self._compare_from_here()

    def _excess(self, step: PlannedStep, loss: float) -> float:
        """Return the size of a step divided by that of a harmless one.

        A harmless step moves the weights little, or would reduce a linear loss by a small share only.
        """
        by_move = step.move / self.limit
        if step.decrease is None or not math.isfinite(loss) or abs(loss) < 1e-300:
            return by_move
        return min(by_move, step.decrease / (_DECREASE * abs(loss)))

    def _limited(self, step: PlannedStep, excess: float) -> float:
        """Return the factor that limits a step to the presently allowed size."""
        largest = min(self._ceiling.size, math.inf if self._allowed is None else self._allowed)
        factor = min(1.0, largest / step.rate)
        longest = max(self.limit, _HEADROOM * self._largest_move)
        if self._phase == "growing" or step.move * factor <= longest or excess * factor <= 1.0:
            self._shortened = max(self._shortened - 1, 0)
            return factor
        if self._phase == "free":
            self._shortened = min(self._shortened + 1, 10)
            self.reason = f"a step at the full rate would be {excess:.3g} times as large as one that is surely harmless"
        return max(longest / step.move, 1.0 / excess)

    def _count_planned(self) -> None:
        """Add up the expected decreases of the loss by the last steps, since it last improved."""
        decrease = self._decreases[-1] if self._decreases else 0.0
        has_improved = self._trend.steps_without_improvement == 0
        self._fruitless = 0 if has_improved else self._fruitless
        self._planned = 0.0 if has_improved else self._planned + decrease
        self._planned_since_lowest = 0.0 if has_improved else self._planned_since_lowest + decrease

    def _compare_from_here(self) -> None:
        self._trend.compare_from_here()
        self._planned = self._planned_since_lowest = 0.0

    @property
    def _has_caused_the_rise(self) -> bool:
        """Whether the steps since the lowest level can have caused the rise of the loss since then."""
        return self._trend.rise <= _EXPLAINED * self._planned_since_lowest

    def _step_has_failed(self) -> bool:
        trend = self._trend
        if self._phase == "free":
            is_stuck = self._large >= 20 and trend.long_level > trend.start
            has_risen = trend.has_left_its_region() or is_stuck
            if has_risen and trend.is_finite and max(self._moves, default=0.0) < _TINY * self.limit:
                has_risen = trend.level - trend.start > _EXPLAINED * max(self._decreases)
        else:
            has_risen = trend.has_risen()
            if has_risen and trend.is_finite and not self._has_caused_the_rise:
                self._compare_from_here()
                has_risen = False
        return has_risen or (self._shortened >= 8 and trend.steps_without_improvement >= 10)

    def _go_on(self, step: PlannedStep, is_far: bool) -> None:
        """Update the size after a step without a failure."""
        trend, growth = self._trend, _growth(step.memory)
        assert self._proven is not None
        self._steps_to_forget = max(0, self._steps_to_forget - 1)
        is_harmless = trend.allows_growth()
        if is_harmless and self._sizes and trend.steps_without_improvement == 0:
            move = self._moves[-1] if self._moves[-1] < math.inf else 0.0
            self._largest_move = min(0.5, max(self._largest_move, move))
            self._proven = max(self._proven, self._sizes[-1])
        if self._phase == "growing":
            if step.rate > 1.0001 * self._proven:
                self._grow(growth, is_harmless)
            else:
                self._allowed = None
                self._steps_to_free -= 1
                self._phase = "growing" if self._steps_to_free > 0 else "free"
        elif is_far and step.rate > growth * self._proven:
            self.reason = "a step at the full rate is likely to overshoot, so that steps begin small and grow"
            self._compare_from_here()
            self._grow(growth, is_harmless)
        else:
            self._allowed = None
        self._ceiling.follow(trend.long_level, self._decreases[-1] if self._decreases else 0.0, trend.clear_change)

    def _grow(self, growth: float, is_harmless: bool) -> None:
        trend = self._trend
        assert self._proven is not None
        self._phase, self._steps_to_free = "growing", 10
        is_worse = trend.is_worse and self._has_caused_the_rise
        shrinkage = 0.5 if is_worse else 1.0
        self._did_harm = self._did_harm or is_worse
        if trend.steps_without_improvement >= 8 and self._planned >= trend.clear_change:
            trend.restart_patience()
            self._planned = 0.0
            self._fruitless += 1
            # Noise hides the progress of small steps: they are not shortened further after several times without any.
            shrinkage *= _SHRINKAGE if self._did_harm and self._fruitless <= _MOST_FRUITLESS else 1.0
        if shrinkage < 1.0:
            self._proven = self._allowed = max(self._proven * shrinkage, self._least)
        elif is_harmless and trend.steps_without_improvement < 4:
            self._allowed = self._proven * (growth if trend.steps_without_improvement == 0 else _SLOW_GROWTH)
        elif trend.is_known and self._planned < _NEGLIGIBLE * trend.clear_change:
            self._proven = max(self._proven, self._sizes[-1])
            self._allowed = self._proven * growth
        elif trend.is_noisy and trend.is_no_worse and self._good == 0.0:  # before a first failure
            self._proven = max(self._proven, self._sizes[-1])
            self._allowed = self._proven * growth**_IN_NOISE
        else:
            # Growth without an improvement before a first failure was tested: it helps runs with a noisy loss, but
            # saves fewer runs whose learning rate is too high.
            self._allowed = self._proven

    def _fail(self) -> None:
        """Begin to recover, from a small step."""
        trend = self._trend
        assert self._proven is not None
        self._good = self._sizes[0] if self._sizes else self._proven
        if self._phase == "growing" or self._steps_to_forget:
            self._ceiling.lower(self._good)
            self._proven = self._ceiling.size
        self._phase, self._did_harm, self._steps_to_forget = "recovering", True, 100
        self._shortened = self._large = 0
        self._largest_move = 0.0  # a movement that did no harm before may do harm at the present weights
        now = f"{trend.level:.3g} after {trend.start:.3g}" if trend.is_finite else "not finite"
        self.reason = f"the loss is {now}, which the last steps may have caused"
        cut = min(_CUT, max(trend.drop_to_start, 0.03)) if trend.is_finite else 0.01
        self._allowed = min(self._good, self._ceiling.size) * cut
        self._level = self._lowest = trend.level
        self._steps = self._steps_without_rise = 0

    def _recover(self) -> None:
        """After a failure, adapt the step size until the loss decreases."""
        trend, level = self._trend, self._trend.level
        assert self._allowed is not None
        self._steps += 1
        self._steps_without_rise += 1
        if not trend.is_finite:
            self._allowed *= 0.5
            self._steps_without_rise = 0
        elif trend.has_recovered:
            self._resume(self._allowed)
        elif self._steps >= 3 and level > self._level + 0.3 * abs(self._level):
            self._allowed *= _CUT
            self._level, self._steps, self._steps_without_rise = level, 0, 0
        elif self._steps_without_rise > _PATIENCE:
            trend.start_again()
            self._resume(self._allowed)
        elif level < self._lowest:
            self._level = self._lowest = level
            self._steps = 0
            self._allowed = min(self._allowed * _RECOVERY, self._ceiling.size)

    def _resume(self, size: float) -> None:
        """Return to the growing phase, from a size that is no larger than the last one without harm."""
        assert self._proven is not None
        self._phase, self._steps_to_free = "growing", 10
        self._proven = self._allowed = min(self._proven, size)
        self._least = min(self._least, self._proven / 4)
        self._ceiling.restart(self._trend.long_level)
        self._compare_from_here()


def _growth(memory: float) -> float:
    """Return the factor of the step size after an improvement, if momentum adds up gradients of `memory` steps."""
    return 1.0 + (_GROWTH - 1.0) * min(1.0, math.sqrt(_MEMORY / memory))
