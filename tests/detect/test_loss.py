"""Signs that the loss shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.detect import DivergingLoss, GradientGrowth, NonFiniteLoss, StalledLoss, UnstableLoss
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import Finding, Severity, StepRecord
from tests.detect.steps import findings_of, noise, record, series


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_loss_is_critical_at_once(loss: float) -> None:
    """NaN or infinity in the loss is found at its very step, and not a step longer than it lasts."""
    (finding,) = findings_of(NonFiniteLoss(), series("loss", [1.0, loss, 1.0], grad_norm=math.nan))
    assert (finding.sign, finding.step, finding.severity) == ("nonfinite-loss", 1, Severity.CRITICAL)
    assert finding.value == pytest.approx(loss, nan_ok=True)


@pytest.mark.parametrize(
    ("batch_idx", "micro_batches", "passes", "named"),
    [
        (9, 1, None, "batch 9"),
        (9, 2, None, "batches 8 to 9"),
        (1, 4, None, "batches 0 to 1"),
        (9, 4, 2, "batches 8 to 9"),  # the last window of an epoch of ten batches
        (9, 2, 7, "batches 8 to 9"),  # gradients that are not cleared
    ],
)
def test_a_loss_of_several_micro_batches_names_all_of_them(
    batch_idx: int, micro_batches: int, passes: int | None, named: str
) -> None:
    """It is not known which of them made it NaN; an epoch may end within them."""
    failing = record(4, loss=math.nan, batch_idx=batch_idx, micro_batches=micro_batches, backward_passes=passes)
    (finding,) = findings_of(NonFiniteLoss(), [failing])
    assert finding.message == f"the loss is NaN at {named}"


def test_a_gradient_scaler_gets_time_for_a_nonfinite_loss() -> None:
    """Under a scaler that adapts it is no more than a warning, until it has lasted too long; then it is critical."""
    detector = NonFiniteLoss(patience=3)
    records = series("loss", [math.nan] * 5, scale_adapts=True, grad_norm=math.nan)
    severities = [finding.severity for finding in findings_of(detector, records)]
    assert severities == [Severity.WARNING] * 3 + [Severity.CRITICAL] * 2
    findings_of(detector, [record(5)])
    (finding,) = findings_of(detector, [record(6, loss=math.nan, scale_adapts=True, grad_norm=math.nan)])
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize(
    ("grad_norm", "rate", "severity"),
    [
        (0.0, 0.1, Severity.WARNING),
        (0.7, 0.0, Severity.WARNING),
        (0.7, 0.1, Severity.CRITICAL),
        (0.7, None, Severity.CRITICAL),
        (math.inf, 0.1, Severity.CRITICAL),
        (math.nan, 0.0, Severity.CRITICAL),
        (None, 0.0, Severity.CRITICAL),
    ],
)
def test_a_nonfinite_loss_whose_update_reaches_no_weight_is_a_warning(
    grad_norm: float | None, rate: float | None, severity: Severity
) -> None:
    """A WARNING, however long it lasts; with other gradients, or none that are known, the update may do harm."""
    findings = findings_of(NonFiniteLoss(), series("loss", [math.nan] * 30, grad_norm=grad_norm, learning_rate=rate))
    assert [finding.severity for finding in findings] == [severity] * 30


@pytest.mark.parametrize(
    ("loss", "gradient", "lasts", "is_found"),
    [(1e28, 1e28, 30, True), (1e6, 1e6, 30, True), (1e6, 1e6, 2, False), (1e6, 50.0, 30, False)],
    ids=["by any factor", "by a million", "for two steps", "without the gradient"],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_first_update_that_ruins_the_network_is_found_without_its_weights(
    loss: float, gradient: float, lasts: int, is_found: bool, sign: float
) -> None:
    """The exploded norms are no start of the run; a spike that passes, or a rise of the loss alone, is none."""
    losses, norms = noise(40), noise(40, seed=1)
    records = [
        record(
            step,
            loss=losses[step] * (loss if 0 < step <= lasts else sign),
            grad_norm=norms[step] * (gradient if 0 < step <= lasts else 1.0),
            weight_norm=11.9 if step else 10.0,
        )
        for step in range(40)
    ]
    found = [one.step for one in findings_of(DivergingLoss(), records) if one.severity is Severity.CRITICAL]
    assert (min(found) <= 8 if found else False) is is_found


def exploding(start: float, factor: float = 2.0, calm: int = 20, scatter: float = 0.2) -> list[StepRecord]:
    """Build a run of any size whose loss and gradients grow by the same factor at each step after a calm start."""
    growth = [1.0] * calm + [factor**step for step in range(1, 21)]
    sizes = enumerate(zip(growth, noise(len(growth), scatter), strict=True))
    size = abs(start) or 1.0
    return [record(n, loss=start - size + size * rise * x, grad_norm=size * rise * x) for n, (rise, x) in sizes]


@pytest.mark.parametrize("start", [1.0, 1e-6, 1e6, 0.0, -5.0])
def test_a_loss_that_leaves_its_start_for_good_is_critical(start: float) -> None:
    """A loss of any size and sign that grows exponentially is found while it is still finite."""
    findings = findings_of(DivergingLoss(), exploding(start))
    critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
    assert critical
    assert {finding.sign for finding in findings} == {"diverging-loss"}
    assert 20 <= critical[0].step < 30
    assert critical[0].value > critical[0].limit


def test_an_explosion_from_the_first_step_on_is_measured_from_its_first_losses() -> None:
    """Losses of 10, 12, 49, 139 and so on started at about 10, whatever they are by the fifth step."""
    losses = [10.0, 12.0, 49.0, 139.0, 500.0, 2000.0, 9000.0, 4e4]
    records = [record(step, loss=loss, grad_norm=loss) for step, loss in enumerate(losses)]
    findings = findings_of(DivergingLoss(), records)
    assert findings
    assert findings[0].step <= 7
    assert "its first values were about 1" in findings[0].message


def test_a_loss_that_starts_at_zero_finds_its_level() -> None:
    """A divergence from a copy is zero up to rounding at first: how large it may become, its start does not say."""
    losses = [1e-9] * 5 + [1e-3 * min(step, 40) for step in range(100)]
    assert findings_of(DivergingLoss(), [record(step, loss=loss) for step, loss in enumerate(losses)]) == []
    detectors = DetectorSet([DivergingLoss()])
    moved = [record(step, loss=loss, grad_norm=loss, weight_norm=10.0 * 1.1**step) for step, loss in enumerate(losses)]
    assert Severity.CRITICAL in {
        f.severity for one in moved for f in detectors.check_before_update(one) + detectors.check_after_update(one)
    }


@pytest.mark.parametrize(("end", "is_critical"), [(3e-4, False), (30.0, True)], ids=["rounding", "diverging"])
def test_a_loss_that_is_a_rounding_error_does_not_diverge(end: float, is_critical: bool) -> None:
    """The value of an on-policy policy gradient is next to zero while its gradient is not, and its weights move."""
    detectors = DetectorSet([DivergingLoss()])
    losses = (np.geomspace(1e-8, end, 120) * noise(120, 0.3)).tolist()
    records = [
        record(step, loss=loss, grad_norm=max(0.05, loss), weight_norm=10.0 + 0.2 * step)
        for step, loss in enumerate(losses)
    ]
    found = {
        f.severity for one in records for f in detectors.check_before_update(one) + detectors.check_after_update(one)
    }
    assert (Severity.CRITICAL in found) is is_critical


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["weight ramped a hundredfold", "period from its minimum"])
def test_a_loss_that_rises_by_design_is_not_critical(form: str, seed: int) -> None:
    """Its gradients rise as much as the loss does, and its weights hardly change."""
    steps = np.arange(1200)
    scale = np.clip(steps / 1000, 0.01, 1.0) if form.startswith("weight") else 1.2 - np.cos(steps / 100)
    factors = np.exp(0.1 * np.random.default_rng(seed).standard_normal((2, len(steps))))
    losses, norms = (scale * factors).tolist()
    findings = findings_of(
        DivergingLoss(), [record(step, loss=losses[step], grad_norm=norms[step]) for step in range(len(steps))]
    )
    assert Severity.CRITICAL not in {finding.severity for finding in findings}


def test_a_slow_rise_is_projected() -> None:
    """From twice the start on, growth by a tenth a step is a WARNING that says when ten times the start is reached."""
    findings = findings_of(DivergingLoss(), exploding(1.0, factor=1.1, scatter=0.0))
    assert findings
    first = findings[0]
    assert first.severity is Severity.WARNING
    crossing = next(
        one.step for one in exploding(1.0, factor=1.1, scatter=0.0) if one.loss is not None and one.loss > 2
    )
    assert crossing <= first.step <= crossing + 4
    steps = int(first.message.rpartition("about ")[2].partition(" ")[0])
    assert first.step + steps == pytest.approx(20 + math.log(10) / math.log(1.1), abs=4)


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
    assert findings_of(DivergingLoss(), series("loss", losses)) == []


def after(detector: DivergingLoss, records: list[StepRecord]) -> list[Finding]:
    """Return the findings in steps whose weights become known after their loss, as in a run."""
    detectors, findings = DetectorSet([detector]), []
    for one in records:
        findings += detectors.check_before_update(replace(one, weight_norm=None)) + detectors.check_after_update(one)
    return findings


def test_one_wild_loss_counts_once_the_weights_are_ruined() -> None:
    """A single batch with a huge loss is none, unless the weights have tripled since the loss was last at its start."""
    losses = [*[1.0] * 20, 1e6, 1.0, 1.0, 1e6, *[1.0] * 10]
    weights = [10.0] * 23 + [40.0] * 11
    spikes = [record(step, loss=loss, weight_norm=10.0, weight_norm_before=10.0) for step, loss in enumerate(losses)]
    assert after(DivergingLoss(), spikes) == []
    ruined = [record(n, loss=x, weight_norm=w) for n, (x, w) in enumerate(zip(losses, weights, strict=True), 0)]
    assert after(DivergingLoss(), ruined) == []
    at_once = after(DivergingLoss(), [*ruined[:24], record(24, loss=1e6, weight_norm=40.0)])
    assert [finding.step for finding in at_once] == [24]
    assert after(DivergingLoss(), [*ruined, record(34, loss=1e6, weight_norm=40.0)]) == []


@pytest.mark.parametrize(
    ("steps", "growth", "is_critical"),
    [(20, 1.0, True), (150, 1.0, False), (150, 1.2, False), (150, 2.0, True)],
    ids=["sudden", "slow", "slow, weights learn", "slow, weights grow"],
)
def test_weights_confirm_a_slow_rise_only_if_they_grow_during_it(steps: int, growth: float, is_critical: bool) -> None:
    """They double while the run goes well; then the loss rises to eight times its start in a straight line."""
    shares = np.clip((np.arange(70 + steps) - 60) / steps, 0, 1)
    weights = 10 * np.clip(1 + np.arange(70 + steps) / 40, 1, 2) * (1 + (growth - 1) * shares)
    losses = np.where(shares > 0, 1 + 7 * shares, 1 - 0.1 * (np.arange(len(shares)) > 5))
    both = zip(losses.tolist(), weights.tolist(), strict=True)
    found = after(DivergingLoss(), [record(n, loss=loss, weight_norm=norm) for n, (loss, norm) in enumerate(both)])
    assert (Severity.CRITICAL in {finding.severity for finding in found}) is is_critical


def test_a_rise_of_the_loss_alone_is_no_divergence() -> None:
    """A rise by 30 % a step is no alarm by itself; with a gradient twenty times the first ones it is, and with one that
    rises to a level, it is none."""
    rising = [*[1.0] * 20, *(1.3**step for step in range(1, 13))]
    assert findings_of(DivergingLoss(), series("loss", rising)) == []
    for losses, is_critical in ((rising, True), ([*[1.0] * 20, *[6.0, 6.1, 6.2, 6.3, 6.4, 6.5] * 2], False)):
        loud = [record(step, loss=loss, grad_norm=20.0 if loss > 1 else 1.0) for step, loss in enumerate(losses)]
        found = {finding.severity for finding in findings_of(DivergingLoss(), loud)}
        assert (Severity.CRITICAL in found) is is_critical


def test_losses_far_apart_from_the_first_step_on_are_noise() -> None:
    """Of two tasks in turn, one has a hundredth of the other's loss; which comes first does not matter."""
    generator = np.random.default_rng(0)
    losses = [0.08, *(9.0 if coin else 0.08 for coin in generator.integers(0, 2, 300))]
    assert findings_of(DivergingLoss(), series("loss", losses)) == []


def test_divergence_is_seen_through_nonfinite_losses() -> None:
    """A NaN in between neither counts as divergence nor hides it."""
    losses = [1.0] * 10 + [2.0, 4.0] + [math.nan] * 5 + [2.0**step for step in range(7, 13)]
    findings = findings_of(
        DivergingLoss(), [record(step, loss=loss, grad_norm=loss) for step, loss in enumerate(losses)]
    )
    assert findings
    assert findings[0].step >= 17


def test_jumps_of_the_loss_are_worth_knowing() -> None:
    """Large changes from update to update, several within a few steps, are unstable; a WARNING if weights and
    gradients have grown."""
    losses = [1.0 + 0.01 * value for value in noise(60)]
    assert findings_of(UnstableLoss(), series("loss", losses)) == []
    losses += [2.0 if step % 2 else 0.3 for step in range(10)]
    findings = findings_of(UnstableLoss(), series("loss", losses))
    assert findings
    assert {(finding.sign, finding.severity) for finding in findings} == {("unstable-loss", Severity.INFO)}
    assert findings[0].step >= 60
    assert findings[0].value > findings[0].limit
    high = [2 * loss if step >= 60 else loss for step, loss in enumerate(losses)]
    moved = [record(step, loss=loss, weight_norm=20.0 if step else 10.0) for step, loss in enumerate(high)]
    assert {finding.severity for finding in findings_of(UnstableLoss(), moved)} == {Severity.INFO}
    grown = [replace(one, grad_norm=10.0 if one.step >= 60 else 1.0) for one in moved]
    assert Severity.WARNING in {finding.severity for finding in findings_of(UnstableLoss(), grown)}


def test_gradients_that_confirm_a_high_loss_at_one_step_are_no_divergence() -> None:
    """Tasks in turn: the loss of one is a hundred times that of the other, and the gradients once ten times the
    first."""
    losses = [8.0 + 0.01 * step if step % 3 == 2 else 0.1 for step in range(60)] + [9.1, 8.8, 9.0, 8.9, 9.2, 9.3]
    norms = [6.0 if step % 3 == 2 else 1.0 for step in range(60)] + [8.0, 9.0, 9.0, 9.0, 11.0, 9.0]
    steps = [record(n, loss=loss, grad_norm=norm) for n, (loss, norm) in enumerate(zip(losses, norms, strict=True))]
    assert findings_of(DivergingLoss(), steps) == []
    rising = [*steps, *(record(66 + step, loss=9.4 * 1.3**step, grad_norm=12.0 * 1.3**step) for step in range(12))]
    detectors = DetectorSet([DivergingLoss(), GradientGrowth()])
    assert (
        max(finding.severity for one in rising for finding in detectors.check_before_update(one)) is Severity.CRITICAL
    )


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
    assert findings_of(UnstableLoss(), series("loss", losses)) == []


def test_a_loss_that_does_not_come_down_has_stalled() -> None:
    """After as many steps as it takes to be sure, a loss that has not come down is worth knowing, no more."""
    findings = findings_of(StalledLoss(window=20), series("loss", noise(100, 0.05)))
    assert findings
    assert {(finding.sign, finding.severity) for finding in findings} == {("stalled-loss", Severity.INFO)}
    assert findings[0].step >= 20


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loss_that_comes_down_has_not_stalled(sign: float) -> None:
    """A falling loss, positive or negative, has not stalled."""
    losses = [sign * value * (0.99 if sign > 0 else 1.01) ** step for step, value in enumerate(noise(200, 0.02))]
    assert findings_of(StalledLoss(window=20), series("loss", losses)) == []


def wandering(count: int, correlation: float, seed: int) -> list[float]:
    """Draw numbers around zero of deviation one, with a correlation from each to the next."""
    values = [0.0]
    for drawn in np.random.default_rng(seed).normal(0.0, math.sqrt(1 - correlation**2), count - 1):
        values.append(correlation * values[-1] + float(drawn))
    return values


def test_a_loss_that_wanders_around_zero_does_not_diverge() -> None:
    """Of 8 runs of 1,000 steps, each with gradients that become ten times as large by chance, none is critical."""
    found = []
    for seed in range(8):
        losses, logarithms = wandering(1000, 0.98, seed), wandering(1000, 0.98, 100 + seed)
        detectors = DetectorSet([DivergingLoss()])
        for step, (loss, logarithm) in enumerate(zip(losses, logarithms, strict=True)):
            one = record(step, loss=loss, grad_norm=math.exp(1.5 * logarithm))
            found += [*detectors.check_before_update(one), *detectors.check_after_update(one)]
    assert not [finding for finding in found if finding.severity is Severity.CRITICAL]
    assert len(found) < 40


def test_an_explosion_is_seen_in_a_loss_that_wanders() -> None:
    """A growth of a tenth a step from a hundredth of a deviation on is critical before it is thirty deviations."""
    detectors, first = DetectorSet([DivergingLoss()]), None
    for step, loss in enumerate(wandering(600, 0.98, 0)):
        growth = 1.1 ** max(0, step - 500)
        one = record(step, loss=loss + 0.01 * growth, grad_norm=growth)
        found = [*detectors.check_before_update(one), *detectors.check_after_update(one)]
        if first is None and any(finding.severity is Severity.CRITICAL for finding in found):
            first = step
    assert first is not None
    assert first > 540
    assert 0.01 * 1.1 ** (first - 500) < 30


def test_a_rise_under_noise_is_projected() -> None:
    """A growth of 3 % a step under noise of a fifth is a warning before it is ten times the start, and not before."""
    losses = [0.5 * factor * 1.03 ** max(0, step - 100) for step, factor in enumerate(noise(180, 0.2))]
    norms = [1.03 ** max(0, step - 100) for step in range(180)]
    steps = [record(n, loss=loss, grad_norm=norm) for n, (loss, norm) in enumerate(zip(losses, norms, strict=True))]
    found = [finding for finding in findings_of(DivergingLoss(), steps) if finding.severity is Severity.WARNING]
    assert found
    assert 100 < found[0].step < 177
    assert "times its start in about" in found[0].message


def test_growth_of_loss_gradients_and_weights_together_is_projected_early() -> None:
    """Growth by 2 % a step, under noise, is a WARNING before the loss is twice its start; any two alone are none."""

    def warnings(loss: float, gradients: float, weights: float) -> list[Finding]:
        count, detector = 140, DivergingLoss()
        values = zip(range(count), noise(count, 0.1), noise(count, 0.1, seed=1), strict=True)
        after = [(max(0, step - 99), scatter, other) for step, scatter, other in values]
        return findings_of(
            detector,
            (
                record(
                    step,
                    loss=scatter * math.exp(loss * grown),
                    grad_norm=other * math.exp(gradients * grown),
                    weight_norm=10 * math.exp(weights * grown),
                )
                for step, (grown, scatter, other) in enumerate(after)
            ),
        )

    found = warnings(0.02, 0.02, 0.02)
    assert found[0].severity is Severity.WARNING
    assert found[0].step < 100 + math.log(2) / 0.02
    assert found[0].value > found[0].limit
    steps = int(found[20].message.rpartition("about ")[2].partition(" ")[0])
    assert found[20].step + steps == pytest.approx(100 + math.log(10) / 0.02, abs=30)
    assert warnings(0.02, 0.0, 0.02) == warnings(0.0, 0.02, 0.02) == warnings(0.02, 0.02, 0.0) == []


@pytest.mark.parametrize("gradient", [None, 0.0, math.nan, math.inf])
def test_joint_growth_leaves_out_steps_without_gradients(gradient: float | None) -> None:
    """Every third step has none, as that of a part that is trained in turns, or one that a scaler skips."""
    detector, steps = DivergingLoss(), range(160)
    growth = [1.02 ** max(0, step - 60) for step in steps]
    records = [
        record(step, loss=size, grad_norm=gradient if step % 3 == 0 else size, weight_norm=10 * size)
        for step, size in zip(steps, growth, strict=True)
    ]
    assert findings_of(detector, records)[0].step < 60 + math.log(2) / math.log(1.02)


def test_a_growth_that_was_seen_is_not_taken_for_other_data() -> None:
    """Targets that the model makes itself change the loss by more than an update that is measured after the warning."""
    detectors = DetectorSet([DivergingLoss()])
    found: list[Finding] = []
    for step, scatter in enumerate(noise(160, 0.05)):
        size = 1.04 ** max(0, step - 60)
        one = record(
            step,
            loss=scatter * size,
            grad_norm=size,
            weight_norm=10 * size,
            weight_norm_before=10 * size,
            update_ratio=1e-9 if found else None,
        )
        found += detectors.check_before_update(one) + detectors.check_after_update(one)
    assert found[0].severity is Severity.WARNING
    critical = [finding for finding in found if finding.severity is Severity.CRITICAL]
    assert critical[0].step < 60 + math.log(10) / math.log(1.04)


def raised_by_plan(then: list[float], gradients: list[float]) -> list[StepRecord]:
    """Build a run whose loss and gradients are multiplied by plan after 100 steps, with updates measured as usual."""
    losses, norms = [*noise(100), *then], [*noise(100, seed=1), *gradients]
    return [
        record(
            step,
            loss=loss,
            grad_norm=norm,
            learning_rate=1e-3,
            weight_norm_before=10.0,
            update_ratio=1e-3 if step % 50 == 49 else None,
            per_parameter={},
        )
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def test_a_loss_raised_a_hundredfold_by_plan_does_not_diverge() -> None:
    """The updates before the jump were far too small to cause it, and the loss stays at its new level."""
    level = [100 * value for value in noise(60, seed=2)]
    detectors = DetectorSet([DivergingLoss(), GradientGrowth()])
    findings = [
        one
        for step in raised_by_plan(level, level)
        for one in (*detectors.check_before_update(step), *detectors.check_after_update(step))
    ]
    assert not [one for one in findings if one.severity is Severity.CRITICAL]


def test_a_loss_that_grows_further_after_it_was_raised_diverges() -> None:
    """From its new level it doubles at each step, which its gradients can have caused."""
    level = [*(100 * value for value in noise(30, seed=2)), *(100 * 2.0**step for step in range(12))]
    detectors = DetectorSet([DivergingLoss(), GradientGrowth()])
    findings = [
        one
        for step in raised_by_plan(level, level)
        for one in (*detectors.check_before_update(step), *detectors.check_after_update(step))
    ]
    critical = [one for one in findings if one.severity is Severity.CRITICAL]
    assert critical
    assert critical[0].step >= 130


@pytest.mark.parametrize(
    ("change", "rate", "is_critical"),
    [(1e-4, 1e-3, False), (0.05, 1e-3, True), (1e-4, 0.1, True)],
    ids=["weights stay", "weights grow", "long updates"],
)
def test_a_first_batch_without_signal_is_no_start(change: float, rate: float, is_critical: bool) -> None:
    """A batch without a sample of a rare class has next to no loss and gradient; the others are the usual ones."""
    levels = [1e-6, *(0.02 * value for value in noise(60, 0.3))]
    records = []
    for step, level in enumerate(levels):
        weights = 10.0 * (1 + change) ** step
        loss, norm = (level * 1.3**step, level * 1.3**step) if is_critical else (level, level)
        records.append(
            record(step, loss=loss, grad_norm=norm, weight_norm=weights, weight_count=100, learning_rate=rate)
        )
    detectors = DetectorSet([DivergingLoss(), GradientGrowth()])
    found = {
        f.severity for one in records for f in detectors.check_before_update(one) + detectors.check_after_update(one)
    }
    assert (Severity.CRITICAL in found) is is_critical
