"""How much of a change of the loss an update can have caused, against losses whose updates are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradexplode.detect.update_effect import UpdateEffect
from lightning_gradexplode.records import StepRecord


def measured(step: int, norm: float, update: float, rate: float = 0.1) -> StepRecord:
    """Build a step whose update was measured, of weights of norm one."""
    return StepRecord(step=step, grad_norm=norm, learning_rate=rate, weight_norm_before=1.0, update_ratio=update)


@pytest.mark.parametrize("rate", [0.01, 0.19, 0.21, 1.0], ids="rate {}".format)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("sign", [1, -1], ids=["convex", "concave"])
def test_no_update_changes_a_convex_or_concave_loss_by_more(rate: float, momentum: float, sign: int) -> None:
    """Descent on a quadratic with a curvature of at most ten, stable and unstable, with every update measured."""
    random = np.random.default_rng(0)
    curvatures, weights, speed = sign * np.linspace(0.1, 10.0, 8), random.normal(size=8), np.zeros(8)
    effect, last = UpdateEffect(), math.inf
    for step in range(30):
        loss, gradient = 0.5 * float(curvatures @ weights**2), curvatures * weights
        speed = momentum * speed + gradient
        record = measured(step, float(np.linalg.norm(gradient)), float(np.linalg.norm(rate * speed)), rate)
        largest = effect.begin(record, 1.0)
        effect.measured(record)
        assert step == 0 or abs(loss - last) <= largest * (1 + 1e-9)
        last, weights = loss, weights - rate * speed


def test_nothing_is_known_before_an_update_was_measured() -> None:
    """Any change may have been caused by updates of unknown size, and after a gradient that is not finite."""
    effect = UpdateEffect()
    assert effect.begin(StepRecord(step=0, grad_norm=1.0), 1.0) == math.inf
    record = measured(1, 2.0, 0.5)
    effect.begin(record, 1.0)
    effect.measured(record)
    assert effect.begin(StepRecord(step=2, grad_norm=3.0, learning_rate=0.1), 1.0) == pytest.approx(1.5)
    assert effect.begin(StepRecord(step=3, grad_norm=math.nan), 1.0) == math.inf
    assert effect.begin(StepRecord(step=4, grad_norm=1.0), 1.0) == math.inf


def test_updates_in_between_follow_the_rate_and_larger_gradients_and_weights() -> None:
    """After a measured update of 0.5, ten times the rate and twice the gradient, 4, is an update of at most 10."""
    effect = UpdateEffect()
    record = measured(0, 2.0, 0.5)
    effect.begin(record, 1.0)
    effect.measured(record)
    effect.begin(StepRecord(step=1, grad_norm=4.0, learning_rate=1.0), 1.0)
    assert effect.begin(StepRecord(step=2, grad_norm=1.0, learning_rate=1.0), 1.0) == pytest.approx(40.0)
    assert effect.begin(StepRecord(step=3, grad_norm=1.0, learning_rate=1.0), 3.0) == pytest.approx(15.0)
