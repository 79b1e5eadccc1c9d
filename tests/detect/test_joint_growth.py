"""Loss, gradients and weights that grow together."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradexplode.detect.joint_growth import JointGrowth, fitted_slope


@pytest.mark.parametrize("count", [3, 24])
def test_the_rate_of_growth_is_the_slope_of_a_fitted_line(count: int) -> None:
    """The slope and its standard error are those of numpy's least squares."""
    values = np.exp(np.random.default_rng(count).normal(0.03 * np.arange(count), 0.2))
    (slope, _), covariance = np.polyfit(np.arange(count), np.log(values), 1, cov=True)
    assert fitted_slope(values.tolist()) == pytest.approx((slope, covariance[0, 0] ** 0.5))


def test_three_that_grow_together_are_found_with_their_rates() -> None:
    """Without noise the rates are those of the growth, from a full window on."""
    growth = JointGrowth(window=24)
    for step in range(24):
        assert growth.rates() is None
        growth.update(rise=2 * 1.02**step - 1, norm=5 * 1.03**step, weights=1.04**step)
    assert growth.rates() == pytest.approx(np.log([1.02, 1.03, 1.04]))


@pytest.mark.parametrize("flat", range(3))
def test_two_of_three_are_not_enough(flat: int) -> None:
    """A plateau that is left, a new objective, and weights that grow as the network learns are no joint growth."""
    factors = [1.05, 1.05, 1.05]
    factors[flat] = 1.0
    growth = JointGrowth()
    for step in range(50):
        loss, norm, weights = (factor**step for factor in factors)
        growth.update(2 * loss - 1, norm, weights)
        assert growth.rates() is None


def test_growth_below_the_start_is_none() -> None:
    """A loss that has fallen far may rise again by a large factor, and is still small."""
    growth = JointGrowth()
    for step in range(50):
        growth.update(rise=0.001 * 1.05**step - 1, norm=1.05**step, weights=1.05**step)
        assert growth.rates() is None


def test_noise_seems_to_grow_as_rarely_as_stated() -> None:
    """In independent noise of loss and gradients, both slopes pass in 0.09 % of all windows, however weights grow."""
    numbers = np.exp(np.random.default_rng(3).normal(0.0, 0.5, (5000, 2, 24))).tolist()
    found = 0
    for losses, norms in numbers:
        growth = JointGrowth()
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            growth.update(10 * loss, norm, 1.05**step)
        found += growth.rates() is not None
    assert found <= 12  # 4 or 5 are expected, and more than 12 have a chance of 0.1 %


def test_extreme_numbers_have_finite_rates() -> None:
    """The largest growth that a double holds is no overflow."""
    growth = JointGrowth()
    for step in range(24):
        size = 10.0 ** (-300 + 26 * step)
        growth.update(size, size, size)
    rates = growth.rates()
    assert rates is not None
    assert np.isfinite(rates).all()


def test_the_state_is_saved() -> None:
    """A growth that is loaded goes on as the one that was saved."""
    growth, other = JointGrowth(), JointGrowth()
    for step in range(30):
        growth.update(1.05**step, 1.05**step, 1.05**step)
    assert other.load_state_dict(growth.state_dict()) == []
    assert other.rates() == growth.rates() is not None
