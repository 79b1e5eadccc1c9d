"""The growth of steps that begin small."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.clip.step_size.growth import Growth, growth_factor
from lightning_gradexplode.clip.step_size.loss_trend import LossTrend
from lightning_gradexplode.clip.step_size.planned_step import PlannedStep
from lightning_gradexplode.clip.step_size.recent_steps import RecentSteps


def next_sizes(losses: list[float], decrease: float, failed: bool = False, proven: float = 0.01) -> tuple[float, float]:
    """Return the proven and the allowed size after losses, whose steps each should have decreased them by as much."""
    growth, trend, steps = Growth(), LossTrend(), RecentSteps()
    growth.begin(proven)
    if failed:
        growth.failed()
    for loss in losses:
        trend.add(loss)
        steps.count(trend.steps_without_improvement == 0)
        steps.add(PlannedStep(proven, 0.01, decrease), 1.0)
    return growth.next(proven, 1.3, trend.allows_growth(), trend, steps)


def test_steps_grow_after_an_improvement() -> None:
    """While the loss decreases, the next step may be 30 % longer."""
    assert next_sizes([1.0 - 0.05 * i for i in range(10)], 0.05) == pytest.approx((0.01, 0.013))


def test_a_rise_that_the_steps_can_have_caused_halves_them() -> None:
    """A loss far above its lowest level halves the size that counts as harmless."""
    assert next_sizes([1.0] * 8 + [2.0] * 2, 0.1) == (0.005, 0.005)


def test_a_rise_that_the_steps_cannot_have_caused_does_not() -> None:
    """A rise of more than ten times what the steps promised comes from elsewhere."""
    assert next_sizes([1.0] * 8 + [2.0] * 2, 1e-4)[0] >= 0.01


@pytest.mark.parametrize("failed", [False, True])
def test_steps_without_progress_are_shortened_only_after_they_have_done_harm(failed: bool) -> None:
    """Steps that should have decreased the loss and have not are shortened in a run that has failed before."""
    proven, _ = next_sizes([1.0 + 0.001 * i for i in range(16)], 0.5, failed)
    assert proven == pytest.approx(0.007 if failed else 0.01)


def test_steps_too_small_for_a_visible_effect_grow() -> None:
    """If steps cannot have moved the loss visibly, they grow although it does not decrease."""
    assert next_sizes([1.0 + 0.001 * i for i in range(20)], 1e-9)[1] == pytest.approx(0.013)


@pytest.mark.parametrize(("memory", "factor"), [(1.0, 1.3), (10.0, 1.3), (40.0, 1.15), (math.inf, 1.0)])
def test_growth_is_slower_with_the_square_root_of_a_long_momentum(memory: float, factor: float) -> None:
    """Momentum over more than ten steps slows the growth, since its effect on the loss is delayed."""
    assert growth_factor(memory) == pytest.approx(factor)
