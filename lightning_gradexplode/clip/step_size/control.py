"""Control of the step size by the changes of the loss after earlier steps."""

from __future__ import annotations

import math

from lightning_gradexplode.clip.step_size.ceiling import Ceiling
from lightning_gradexplode.clip.step_size.growth import Growth, growth_factor
from lightning_gradexplode.clip.step_size.loss_trend import LossTrend
from lightning_gradexplode.clip.step_size.planned_step import PlannedStep
from lightning_gradexplode.clip.step_size.recent_steps import RecentSteps
from lightning_gradexplode.clip.step_size.recovery import CUT, Recovery
from lightning_gradexplode.records.state import Stateful

_DECREASE = 0.25
"""Share of the loss by which a harmless step may reduce it if it were linear. On a quadratic loss of one weight with a
minimum of zero, the best step would reduce it by two times the loss, and steps diverge from four times the loss on; of
many weights, a small part of the gradient is in the direction that diverges first."""

_TINY = 0.1
"""Share of `limit`. After five steps that moved the weights less, a rise of the loss above its start is a failure only
if it is more than ten times the decrease of a linear loss by one of them: a loss that starts near zero, or that is
mostly noise, rises by as much in healthy runs."""

_FIRST = 1 / 15
"""The first step divided by a harmless one, if the learning rate makes a larger step: the weights change by 1 % instead
of 15 %."""

_HEADROOM = 2.5
"""Largest allowed movement of the weights divided by the largest one that did no harm, since gradients vary from step
to step."""


class StepSizeControl(Stateful):
    """A factor of the learning rate, 1.0 as long as there is no evidence against the rate.

    It is in one of three phases:

    - Free: the rate is used. A step that would move the weights by more than `limit` of their norm, and reduce the loss
      by more than a quarter if it were linear, starts the growing phase if the rate is a new one, and is shortened
      otherwise.
    - Growing: the size of steps, small at first, follows `Growth` until ten steps after it has reached the learning
      rate.
    - Recovering: after a failure, steps are small until the loss has decreased or is constant (`Recovery`); then they
      grow.

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
    steps can have caused, medians of ten losses are compared instead (`LossTrend.is_noisy`).

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
        self._steps = RecentSteps()
        self._ceiling = Ceiling()
        self._growth = Growth()
        self._recovery = Recovery()
        self._phase = "free"
        self._proven = None  # the largest size, a learning rate, after which the loss improved
        self._allowed = None  # the largest size at present, None for any
        self._largest_move = 0.0  # of steps that did no harm since the last failure
        self._shortened = self._large = 0  # recent steps that were shortened, and that may do harm
        self.reason = "earlier steps have failed"
        self._steps_to_free = 0
        self._steps_to_forget = 0
        self._begins_small = False
        self._failed_size = 0.0  # the size before the last failure, 0.0 before the first one

    @property
    def largest(self) -> float | None:
        """The largest size, a learning rate, of the last steps and before a failure; None before the first step."""
        sizes = [*self._steps.sizes, *([self._failed_size] if self._phase == "recovering" else [])]
        return max(sizes, default=None)

    @property
    def is_free(self) -> bool:
        """Whether the scheduled rate is used, apart from single steps."""
        return self._phase == "free"

    @property
    def is_calm(self) -> bool:
        """Whether the level of the loss is known, no step has failed, and the step size is not limited."""
        is_limited = self._ceiling.is_set or self._allowed is not None
        return self._trend.has_level and self._phase == "free" and not is_limited

    @property
    def has_failed(self) -> bool:
        """Whether the loss has left its region, and steps are kept small until it decreases."""
        return self._phase == "recovering"

    def limit_to(self, size: float) -> None:
        """Limit steps to a size, and start again from a small one."""
        self._ceiling.limit_to(size)
        self._proven, self._begins_small = None, True
        self.reason = f"steps begin small after a rollback, and stay below a learning rate of {size:.3g}"

    def factor(self, step: PlannedStep, loss: float) -> float:
        """Return the factor of the learning rate for the coming step.

        Args:
            step: The coming step.
            loss: The loss before it.
        """
        trend, excess = self._trend, self._excess(step, loss)
        largest_rise = self._steps.largest_rise_by_one if excess <= 1.0 else math.inf
        trend.add(loss, largest_rise, self._steps.largest_rise_by_two)
        if not trend.has_level:
            return 1.0
        self._steps.count(trend.steps_without_improvement == 0)
        if trend.steps_without_improvement == 0:
            self._growth.improved()
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
        self._steps.add(step, factor)
        return factor

    def _excess(self, step: PlannedStep, loss: float) -> float:
        """Return the size of a step divided by that of a harmless one.

        A harmless step moves the weights little, or would reduce a linear loss by a small share only.
        """
        by_move = step.move / self.limit
        if step.decrease is None or not math.isfinite(loss) or abs(loss) < 1e-300:
            return by_move
        return min(by_move, step.decrease / (_DECREASE * abs(loss)))

    def _begin(self, step: PlannedStep, excess: float) -> None:
        """Begin with the learning rate, or with a smaller one if a step at that rate may do harm."""
        is_harmless = excess <= 1.0 and not self._begins_small
        self._proven = step.rate if is_harmless else min(self._ceiling.size, step.rate / max(excess, 1.0)) * _FIRST
        self._growth.begin(self._proven)
        if self._begins_small:
            self._begins_small, self._phase, self._allowed = False, "growing", self._proven
            self._compare_from_here()

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
            self.reason = f"a step at the full rate would be {excess:.3g} times as large as a harmless one"
        return max(longest / step.move, 1.0 / excess)

    def _compare_from_here(self) -> None:
        self._trend.compare_from_here()
        self._steps.forget_earlier()

    def _step_has_failed(self) -> bool:
        trend, steps = self._trend, self._steps
        if self._phase == "free":
            is_stuck = self._large >= 20 and trend.long_level > trend.start
            has_risen = trend.has_left_its_region() or is_stuck
            if has_risen and trend.is_finite and steps.largest_move < _TINY * self.limit:
                has_risen = trend.level - trend.start > steps.largest_rise_by_one
        else:
            has_risen = trend.has_risen()
            if has_risen and trend.is_finite and not steps.can_have_caused(trend.rise):
                self._compare_from_here()
                has_risen = False
        return has_risen or (self._shortened >= 8 and trend.steps_without_improvement >= 10)

    def _go_on(self, step: PlannedStep, is_far: bool) -> None:
        """Update the size after a step without a failure."""
        trend, growth = self._trend, growth_factor(step.memory)
        assert self._proven is not None
        self._steps_to_forget = max(0, self._steps_to_forget - 1)
        is_harmless = trend.allows_growth()
        if is_harmless and self._steps.sizes and trend.steps_without_improvement == 0:
            self._largest_move = min(0.5, max(self._largest_move, self._steps.last_move))
            self._proven = max(self._proven, self._steps.sizes[-1])
        if self._phase == "growing":
            if step.rate > 1.0001 * self._proven:
                self._grow(growth, is_harmless)
            else:
                self._allowed = None
                self._steps_to_free -= 1
                self._phase = "growing" if self._steps_to_free > 0 else "free"
        elif is_far and step.rate > growth * self._proven:
            self.reason = "a step at the full rate may overshoot, so that steps begin small and grow"
            self._compare_from_here()
            self._grow(growth, is_harmless)
        else:
            self._allowed = None
        self._ceiling.follow(trend.long_level, self._steps.last_decrease, trend.clear_change)

    def _grow(self, growth: float, is_harmless: bool) -> None:
        assert self._proven is not None
        self._phase, self._steps_to_free = "growing", 10
        self._proven, self._allowed = self._growth.next(self._proven, growth, is_harmless, self._trend, self._steps)

    def _fail(self) -> None:
        """Begin to recover, from a small step."""
        trend = self._trend
        assert self._proven is not None
        self._failed_size = self._steps.sizes[0] if self._steps.sizes else self._proven
        if self._phase == "growing" or self._steps_to_forget:
            self._ceiling.lower(self._failed_size)
            self._proven = self._ceiling.size
        self._growth.failed()
        self._phase, self._steps_to_forget = "recovering", 100
        self._shortened = self._large = 0
        self._largest_move = 0.0  # a movement that did no harm before may do harm at the present weights
        course = f"{trend.level:.3g} and has {'risen' if trend.rise > trend.clear_change else 'not fallen'}"
        self.reason = f"the loss is {course if trend.is_finite else 'not finite'}, which the last steps may have caused"
        cut = min(CUT, max(trend.drop_to_start, 0.03)) if trend.is_finite else 0.01
        self._allowed = min(self._failed_size, self._ceiling.size) * cut
        self._recovery.begin(trend.level)

    def _recover(self) -> None:
        """Change the step size after a failure; at the end return to the growing phase, from a size without harm."""
        assert self._allowed is not None
        assert self._proven is not None
        factor = self._recovery.factor(self._trend)
        if factor is not None:
            self._allowed = min(self._allowed * factor, self._ceiling.size)
            return
        self._phase, self._steps_to_free = "growing", 10
        self._proven = self._allowed = min(self._proven, self._allowed)
        self._growth.resume(self._proven)
        self._ceiling.restart(self._trend.long_level)
        self._compare_from_here()
