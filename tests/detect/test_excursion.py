"""Whether a rise of the loss is geometric, against series whose form is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradexplode.detect.excursion import Excursion


def excursion(rises: list[float], weights: float = 1.0) -> Excursion:
    """Build the excursion of a loss that was at its start before these rises."""
    excursion = Excursion()
    excursion.update(-0.1, weights)
    for rise in rises:
        excursion.update(rise, weights)
    return excursion


@pytest.mark.parametrize("factor", [1.01, 1.1, 2.0, 10.0])
def test_a_rise_by_the_same_factor_is_geometric(factor: float) -> None:
    """However fast it is, and with noise of a tenth."""
    steps = range(1, 4 + int(math.log(20) / math.log(factor)))
    drawn = np.random.default_rng(0).normal(scale=0.1, size=1000)
    assert excursion([factor**step * math.exp(drawn[step]) - 1 for step in steps]).is_geometric


@pytest.mark.parametrize(
    "rises",
    [
        [9 * step / 100 for step in range(1, 101)],
        [99 * step / 1000 for step in range(1, 1001)],
        [5 * (1 - math.cos(step / 100)) for step in range(200, 320)],
        [20.0] * 10,
    ],
    ids=["a line", "a long line", "a period near its maximum", "a new level"],
)
def test_a_rise_that_slows_down_is_not_geometric(rises: list[float]) -> None:
    """Its logarithm was above half of its last value for most of the time."""
    assert not excursion(rises).is_geometric


def test_there_is_no_rise_at_the_start() -> None:
    """A loss that comes back to its start, or never left it, does not rise."""
    assert not Excursion().is_geometric
    assert not excursion([1.0, 3.0, 9.0, 0.0]).is_geometric


def test_weights_are_compared_with_those_when_the_loss_was_last_at_its_start() -> None:
    """Weights that had tripled before have not grown since."""
    assert excursion([5.0], weights=3.0).growth_of(3.0) == 1.0
    assert excursion([5.0], weights=1.5).growth_of(3.0) == 2.0
    assert excursion([5.0], weights=0.0).growth_of(3.0) == 3.0
