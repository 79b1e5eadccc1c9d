"""Signs that the loss shows."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.detect import DivergingLoss, NonFiniteLoss, StalledLoss, UnstableLoss
from lightning_gradexplode.records import Severity
from tests.detect.steps import judge, noise, record, series


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_loss_is_critical_at_once(loss: float) -> None:
    """NaN or infinity in the loss is found at its very step, and not a step longer than it lasts."""
    (finding,) = judge(NonFiniteLoss(), series("loss", [1.0, loss, 1.0]))
    assert (finding.sign, finding.step, finding.severity) == ("nonfinite-loss", 1, Severity.CRITICAL)
    assert finding.value == pytest.approx(loss, nan_ok=True)


def test_a_gradient_scaler_gets_time_for_a_nonfinite_loss() -> None:
    """Under a scaler that adapts it is no more than a warning, until it has lasted too long; then it is critical."""
    detector = NonFiniteLoss(patience=3)
    severities = [finding.severity for finding in judge(detector, series("loss", [math.nan] * 5, scale_adapts=True))]
    assert severities == [Severity.WARNING] * 3 + [Severity.CRITICAL] * 2
    judge(detector, [record(5)])
    (finding,) = judge(detector, [record(6, loss=math.nan, scale_adapts=True)])
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize("start", [1.0, 1e-6, 1e6, 0.0, -5.0])
def test_a_loss_that_leaves_its_start_for_good_is_critical(start: float) -> None:
    """A loss of any size and sign that grows exponentially is found while it is still finite."""
    losses = [start * value for value in noise(20)] + [start + max(abs(start), 1.0) * 2.0**k for k in range(20)]
    findings = judge(DivergingLoss(), series("loss", losses))
    assert findings
    assert {finding.sign for finding in findings} == {"diverging-loss"}
    assert findings[0].severity is Severity.CRITICAL
    assert 20 <= findings[0].step < 30
    assert findings[0].value > findings[0].limit


@pytest.mark.parametrize(
    "losses",
    [
        [5.0 / (1 + step) for step in range(100)],
        noise(200, 0.3),
        [-value for value in noise(200, 0.3)],
        [value - 1.0 for value in noise(200, 0.2)],
        [50.0 if step % 10 == 9 else 1.0 for step in range(100)],
        [1.0] * 100,
        [0.0] * 100,
    ],
    ids=["falling", "noise", "negative", "around zero", "swings back", "constant", "zero"],
)
def test_a_loss_that_stays_or_comes_back_does_not_diverge(losses: list[float]) -> None:
    """Falling, noisy, negative and constant losses are no divergence, nor is one that swings back each time."""
    assert judge(DivergingLoss(), series("loss", losses)) == []


def test_divergence_is_seen_through_nonfinite_losses() -> None:
    """A NaN in between neither counts as divergence nor hides it."""
    losses = [1.0] * 10 + [math.nan] * 5 + [100.0] * 5
    findings = judge(DivergingLoss(), series("loss", losses))
    assert findings
    assert findings[0].step >= 15


def test_jumps_of_the_loss_are_a_warning() -> None:
    """Large changes from update to update, several within a few steps, are unstable."""
    losses = [1.0 + 0.01 * value for value in noise(60)]
    assert judge(UnstableLoss(), series("loss", losses)) == []
    losses += [2.0 if step % 2 else 0.3 for step in range(10)]
    findings = judge(UnstableLoss(), series("loss", losses))
    assert findings
    assert {(finding.sign, finding.severity) for finding in findings} == {("unstable-loss", Severity.WARNING)}
    assert findings[0].step >= 60
    assert findings[0].value > findings[0].limit


@pytest.mark.parametrize(
    "losses",
    [
        noise(300, 0.3),
        [5.0 * 0.98**step for step in range(300)],
        [1.0] * 50 + [3.0] + [1.0] * 50,
        [1.0] * 200,
    ],
    ids=["noise", "falling", "one jump", "constant"],
)
def test_ordinary_losses_are_not_unstable(losses: list[float]) -> None:
    """Noise as ever, a smooth descent and a single jump are no instability."""
    assert judge(UnstableLoss(), series("loss", losses)) == []


def test_a_loss_that_does_not_come_down_has_stalled() -> None:
    """After as many steps as it takes to be sure, a loss that has not come down is a warning, never critical."""
    findings = judge(StalledLoss(window=20), series("loss", noise(100, 0.05)))
    assert findings
    assert {(finding.sign, finding.severity) for finding in findings} == {("stalled-loss", Severity.WARNING)}
    assert findings[0].step >= 20


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loss_that_comes_down_has_not_stalled(sign: float) -> None:
    """A falling loss, positive or negative, has not stalled."""
    losses = [sign * value * (0.99 if sign > 0 else 1.01) ** step for step, value in enumerate(noise(200, 0.02))]
    assert judge(StalledLoss(window=20), series("loss", losses)) == []
