"""The step size after a failure."""

from __future__ import annotations

import math

from lightning_gradexplode.clip.step_size.loss_trend import LossTrend
from lightning_gradexplode.clip.step_size.recovery import Recovery


def after_a_failure(start: float, level: float) -> tuple[Recovery, LossTrend]:
    """Return a recovery that began when the loss had risen from a start to a level."""
    trend = LossTrend()
    for loss in [start] * 6 + [level] * 3:
        trend.add(loss)
    assert trend.has_risen()
    recovery = Recovery()
    recovery.begin(level)
    return recovery, trend


def factors(losses: list[float], start: float = 1.0, level: float = 10.0) -> list[float | None]:
    """Return the factor of the step size at each of some losses after a failure."""
    recovery, trend = after_a_failure(start, level)
    found = []
    for loss in losses:
        trend.add(loss)
        found.append(recovery.factor(trend))
    return found


def test_steps_grow_with_each_new_minimum_and_the_recovery_ends_near_the_level_before() -> None:
    """Steps grow while the loss decreases, and the recovery ends when it is back where it was."""
    found = factors([9.0, 8.0, 6.0, 4.0, 2.0, 1.0, 1.0, 1.0])
    assert found[3:5] == [1.2, 1.2]
    assert found[-1] is None


def test_a_further_rise_shortens_the_steps_again() -> None:
    """A rise of more than 30 % after three steps is answered with steps of a quarter."""
    found = factors([10.0, 10.0, 14.0, 14.0, 14.0])
    assert found.count(0.25) == 1
    assert found[:2] == [1.0, 1.0]


def test_a_loss_that_is_not_finite_halves_the_steps() -> None:
    """While the loss is not finite, each step is half as long as the one before."""
    assert factors([math.nan, math.inf, math.nan]) == [0.5, 0.5, 0.5]


def test_a_loss_that_stays_at_its_new_level_ends_the_recovery() -> None:
    """After twenty steps without a rise the present level counts as the start of the loss."""
    recovery, trend = after_a_failure(1.0, 10.0)
    found = []
    for _ in range(21):
        trend.add(10.0)
        found.append(recovery.factor(trend))
    assert found == [1.0] * 20 + [None]
    assert trend.start == 10.0
