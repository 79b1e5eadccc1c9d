"""The usual gradient norm of each parameter, over steps that are calm and steps that are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradexplode.detect.grad_norm_ema import GradNormEMA
from tests.detect.steps import through_checkpoint


def test_a_rise_is_the_logarithm_of_a_norm_over_its_usual_one() -> None:
    """Where nothing is usual or measured, the rise is NaN."""
    levels = GradNormEMA()
    assert np.isnan(levels.rises(np.array([1.0, 2.0]))).all()
    for _ in range(200):
        levels.update(np.array([2.0, 1e-6, 0.0]))
    rises = levels.rises(np.array([20.0, 1e-6, 5.0]))
    assert rises[:2] == pytest.approx([math.log(10), 0.0], abs=1e-9)
    assert math.isnan(rises[2])


def test_levels_stay_through_norms_that_are_not_finite() -> None:
    """Zero, NaN and infinite norms leave a level as it was; the others go on."""
    levels = GradNormEMA()
    for _ in range(200):
        levels.update(np.array([1.0, 1.0, 1.0, 1.0]))
    for _ in range(200):
        levels.update(np.array([math.nan, math.inf, 0.0, math.e]))
    rises = levels.rises(np.array([1.0, 1.0, 1.0, math.e]))
    assert rises == pytest.approx(np.zeros(4), abs=0.01)


def test_levels_go_through_a_checkpoint() -> None:
    """Levels that were saved and loaded give the same rises, also where some or all are not known."""
    norms = np.array([1.0, 0.0, 3.0])
    levels, other = GradNormEMA(), GradNormEMA()
    other.load_state_dict(through_checkpoint(levels.state_dict()))
    assert np.isnan(other.rises(norms)).all()
    levels.update(norms)
    other.load_state_dict(through_checkpoint(levels.state_dict()))
    np.testing.assert_array_equal(other.rises(norms * 2), levels.rises(norms * 2))
