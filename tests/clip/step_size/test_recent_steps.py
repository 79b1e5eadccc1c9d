"""The last steps, and what they may have done to the loss."""

from __future__ import annotations

import math

from lightning_gradexplode.clip.step_size.planned_step import PlannedStep
from lightning_gradexplode.clip.step_size.recent_steps import RecentSteps


def test_a_rise_is_explained_by_ten_times_the_decreases_since_the_lowest_loss() -> None:
    """Three steps that promise decreases of 0.1 since the last improvement can have caused a rise of 3."""
    steps = RecentSteps()
    for has_improved in (True, True, False, False, False):
        steps.count(has_improved)
        steps.add(PlannedStep(0.1, 0.01, 0.1), 1.0)
    assert steps.can_have_caused(2.9)
    assert not steps.can_have_caused(3.1)
    steps.count(True)
    assert not steps.can_have_caused(0.1)


def test_a_factor_of_the_learning_rate_shortens_size_move_and_decrease() -> None:
    """A step at half of its rate counts with half of its size, movement and decrease."""
    steps = RecentSteps()
    steps.add(PlannedStep(0.4, 0.2, 0.1), 0.5)
    assert (steps.sizes, steps.last_move, steps.last_decrease) == ([0.2], 0.1, 0.05)
    assert steps.largest_rise_by_one == steps.largest_rise_by_two == 0.5


def test_a_step_of_unknown_effect_may_have_caused_any_rise() -> None:
    """Without a known decrease, a rise of any size can come from the step, and its movement is not known."""
    steps = RecentSteps()
    steps.add(PlannedStep(0.4, 0.2), 1.0)
    steps.count(False)
    assert steps.can_have_caused(1e300)
    assert steps.largest_move == math.inf
    assert steps.last_move == 0.0
