"""How far numbers wander by chance, against the walks and the noise that they were drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradexplode.detect.growth import Trend
from lightning_gradexplode.detect.wandering import Wandering


def spread(values: list[float], steps: int) -> float:
    """Return the spread over so many steps that is estimated from values."""
    wandering = Wandering()
    for value in values:
        wandering.add(value, calm=np.inf, outside=np.inf)
    return wandering.spread(steps)


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_spreads_as_the_root_of_the_steps(seed: int) -> None:
    """The spread of a walk of unit steps over 64 steps is about eight."""
    walk = np.random.default_rng(seed).normal(size=400).cumsum().tolist()
    assert spread(walk, 64) == pytest.approx(8.0, rel=0.6)


@pytest.mark.parametrize("seed", range(4))
def test_noise_around_a_level_does_not_spread(seed: int) -> None:
    """Two values of unit noise differ by the root of two, however many steps lie between them."""
    drawn = np.random.default_rng(seed).normal(size=400).tolist()
    assert spread(drawn, 1000) == pytest.approx(2**0.5, rel=0.5)


def test_a_number_of_which_little_is_known_is_taken_for_a_walk() -> None:
    """After ten values there are decreases over one step only."""
    values = [0.0, -1.0, 0.0, -1.0, 0.0, -1.0, 0.0, -1.0, 0.0, -1.0]
    assert spread(values, 100) == pytest.approx(10 * spread(values, 1))


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_a_trend_is_seen_under_noise_of_its_own_size(slope: float) -> None:
    """Over 32 steps with noise as large as the change from step to step."""
    trend = Trend()
    for step, drawn in enumerate(np.random.default_rng(0).normal(size=32)):
        trend.add(slope * step + float(drawn))
    assert trend.rises == (slope > 0)
    assert not trend.falls_faster
    assert (trend.rate > 0) == (slope > 0)
