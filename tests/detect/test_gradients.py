"""Signs that the gradients show."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.detect import (
    ClipSaturated,
    GradientAboveOne,
    GradientGrowth,
    GradientSpike,
    NonFiniteGradient,
    VanishingGradient,
    ZeroGradient,
)
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.records import ModuleGradients, Severity, StepRecord
from tests.detect.steps import findings_of, noise, record, series


def overflow(step: int, **fields: object) -> StepRecord:
    """Build a step at which the second parameter's gradient is not finite."""
    norms = np.array([1.0, math.inf, math.nan])
    return record(step, grad_norm=math.nan, nonfinite_count=3, per_parameter={"grad_norm": norms}, **fields)


def test_a_nonfinite_gradient_is_critical_at_once() -> None:
    """The finding comes at the very step, counts the elements, and names the last parameter, where it began."""
    (finding,) = findings_of(NonFiniteGradient(), [record(0), overflow(1), record(2)])
    assert (finding.sign, finding.step, finding.severity) == ("nonfinite-gradient", 1, Severity.CRITICAL)
    assert (finding.value, finding.where) == (3, "third")


def test_a_gradient_scaler_gets_time_for_its_overflows() -> None:
    """Overflows of a scaler that adapts are only worth knowing, until they do not end; then they are critical."""
    detector = NonFiniteGradient(patience=3)
    findings = findings_of(detector, [overflow(step, scale_adapts=True) for step in range(5)])
    assert [finding.severity for finding in findings] == [Severity.INFO] * 3 + [Severity.CRITICAL] * 2
    findings_of(detector, [record(5)])
    (finding,) = findings_of(detector, [overflow(6, scale_adapts=True)])
    assert finding.severity is Severity.INFO


def test_a_scaler_that_does_not_lower_its_scale_gets_no_time() -> None:
    """Three overflows have left the scale where it was: the fourth is critical; one that is halved has more time."""
    kept = [overflow(step, scale_adapts=True, loss_scale=1024.0) for step in range(5)]
    assert [finding.severity for finding in findings_of(NonFiniteGradient(), kept)] == [Severity.INFO] * 3 + [
        Severity.CRITICAL
    ] * 2
    halved = [overflow(step, scale_adapts=True, loss_scale=1024.0 / 2**step) for step in range(10)]
    assert {finding.severity for finding in findings_of(NonFiniteGradient(), halved)} == {Severity.INFO}


@pytest.mark.parametrize("usual", [1e-6, 1.0, 1e6])
def test_a_single_large_gradient_is_a_spike(usual: float) -> None:
    """One step far above what is usual is a warning, whatever the usual size; the steps after it are not."""
    norms = [usual * value for value in noise(60)]
    norms[50] = usual * 100
    (finding,) = findings_of(GradientSpike(), series("grad_norm", norms, loss=usual))
    assert (finding.sign, finding.step, finding.severity) == ("gradient-spike", 50, Severity.WARNING)
    assert finding.value == usual * 100 > finding.limit > usual


@pytest.mark.parametrize(
    ("loss", "severity"), [(9.9, Severity.WARNING), (10.1, Severity.INFO), (None, Severity.WARNING)]
)
def test_a_spike_is_harmless_while_the_gradient_is_small(loss: float | None, severity: Severity) -> None:
    """Its norm times that of the weights is 1000, or the size of the loss at the start is not known."""
    norms = [*noise(50), 100.0]
    (finding,) = findings_of(GradientSpike(), series("grad_norm", norms, loss=loss))
    assert (finding.step, finding.severity) == (50, severity)


def test_spikes_do_not_hide_later_spikes() -> None:
    """Spikes do not enter what is usual, so that the tenth one is found as the first one is."""
    norms = noise(200)
    places = list(range(60, 200, 14))
    for place in places:
        norms[place] = 100.0
    assert [finding.step for finding in findings_of(GradientSpike(), series("grad_norm", norms))] == places


def test_a_new_level_stops_being_a_spike() -> None:
    """What lasts is not a spike: after a while the new level is the usual one."""
    findings = findings_of(GradientSpike(), series("grad_norm", [*noise(60), *(30 * value for value in noise(300))]))
    assert findings
    assert findings[-1].step < 300


@pytest.mark.parametrize("scatter", [0.0, 0.1, 0.3, 0.8])
def test_scatter_as_usual_is_no_spike(scatter: float) -> None:
    """Noise of any usual size is no spike."""
    assert findings_of(GradientSpike(), series("grad_norm", noise(500, scatter))) == []


@pytest.mark.parametrize("rate", [1.3, 2.0, 10.0])
@pytest.mark.parametrize("usual", [1e-6, 1.0, 1e6])
def test_exponential_growth_becomes_critical(rate: float, usual: float) -> None:
    """Gradients that grow exponentially, slowly or fast, are found, and become critical while they are finite."""
    norms = [usual * value for value in noise(40)] + [usual * rate**step for step in range(40)]
    findings = findings_of(GradientGrowth(), series("grad_norm", norms))
    assert findings
    assert {finding.sign for finding in findings} == {"gradient-growth"}
    assert findings[0].step >= 40
    assert findings[-1].severity is Severity.CRITICAL
    assert all(finding.value > finding.limit for finding in findings)


def test_growth_back_to_a_level_of_old_is_worth_knowing() -> None:
    """A run that has converged and gets a new task has large gradients again, and a loss above its start."""
    norms = [*noise(30), *(1e-5 * value for value in noise(200)), *(3 * value for value in noise(20))]
    losses = [1.0] * 30 + [1e-4] * 200 + [2.5] * 20
    steps = enumerate(zip(norms, losses, strict=True))
    findings = findings_of(GradientGrowth(), [record(step, grad_norm=norm, loss=loss) for step, (norm, loss) in steps])
    assert {finding.severity for finding in findings} == {Severity.INFO}


def test_slow_growth_with_a_loss_that_runs_away_is_critical() -> None:
    """Five percent a step are in no window's tail; the loss falls without a floor all the while."""
    records = [
        record(step, grad_norm=1.05**step * value, loss=1.0 - 0.01 * 1.06**step, weight_norm=1.01**step)
        for step, value in enumerate(noise(200, 0.05))
    ]
    findings = findings_of(GradientGrowth(), records)
    assert Severity.CRITICAL in {finding.severity for finding in findings}
    assert findings[0].step < 150
    calm = [record(one.step, grad_norm=one.grad_norm, loss=1.0) for one in records]
    assert findings_of(GradientGrowth(), calm) == []


@pytest.mark.parametrize(
    ("weights", "loss", "count", "is_critical"),
    [(1.01, None, 1, True), (1.0, None, 1, False), (1.01, 1.0, 1, False), (1.05, None, 10**6, False)],
    ids=["grown", "equal weights", "equal loss", "weights that started next to zero"],
)
def test_slow_growth_of_gradients_and_weights_is_critical_where_no_loss_is_known(
    weights: float, loss: float | None, count: int, is_critical: bool
) -> None:
    """As in manual optimization; where the loss is known and stays, nothing has exploded."""
    records = [
        record(step, grad_norm=1.12**step * value, loss=loss, weight_norm=weights**step, weight_count=count)
        for step, value in enumerate(noise(120, 0.05))
    ]
    alarms = [one for one in findings_of(GradientGrowth(), records) if one.severity is Severity.CRITICAL]
    assert bool(alarms) is is_critical
    assert all("no loss is known" in one.message for one in alarms)


@pytest.mark.parametrize("scale", [1e-3, 1e6])
@pytest.mark.parametrize("bounded", [True, False], ids=["reward", "score"])
def test_a_fall_from_near_zero_is_critical_if_the_weights_grow(scale: float, bounded: bool) -> None:
    """Descent on a reward, which has a lower bound, and on a product of two weights, which has none."""
    one, other = (-1.5, 1.0) if bounded else (0.1, 0.1)
    steps = []
    for step in range(200):
        reward = math.exp(-2 * (one - 2) ** 2)
        slopes = (4 * (one - 2) * reward, 0.0) if bounded else (-other, -one)
        loss, norm = -scale * (reward if bounded else one * other), scale * math.hypot(*slopes)
        steps.append(record(step, loss=loss, grad_norm=norm, weight_norm=math.hypot(one, other)))
        factor = 0.05 / max(math.hypot(*slopes), 1e-9) if bounded else 0.05
        one, other = one - factor * slopes[0], other - factor * slopes[1]
    assert max(step.grad_norm or 0.0 for step in steps) > 100 * (steps[0].grad_norm or 0.0)
    assert min(step.loss or 0.0 for step in steps) < 10 * (steps[0].loss or 0.0) < 0
    severities = {finding.severity for finding in findings_of(GradientGrowth(), steps)}
    assert (Severity.CRITICAL in severities) is not bounded


def test_growth_is_critical_once_another_number_confirms_it() -> None:
    """A raised gradient norm alone is worth knowing; with a loss well above its start it is critical."""
    norms = [*noise(40), *[30.0] * 5]
    calm = findings_of(GradientGrowth(), series("grad_norm", norms))
    assert {finding.severity for finding in calm} == {Severity.INFO}
    records = [record(step, grad_norm=norm, loss=1.0 if step < 40 else 8.0) for step, norm in enumerate(norms)]
    assert {finding.severity for finding in findings_of(GradientGrowth(), records)} == {Severity.CRITICAL}


@pytest.mark.parametrize(
    "norms",
    [
        noise(500, 0.5),
        [*noise(50), 1000.0, *noise(50)],
        [100.0 * 0.97**step for step in range(300)],
        [1.01**step for step in range(300)],
        [0.0] * 100,
    ],
    ids=["noise", "one spike", "falling", "slow drift", "zero"],
)
def test_ordinary_gradients_do_not_grow(norms: list[float]) -> None:
    """Noise, a single spike, a descent and a slow drift are no growth."""
    assert findings_of(GradientGrowth(), series("grad_norm", norms)) == []


def test_gradients_that_stay_above_one_are_worth_knowing() -> None:
    """The parameter with the largest lasting share is named, as a note and never as an alarm."""

    def shares(step: int, *values: float) -> StepRecord:
        return record(step, per_parameter={"share_above_one": np.array(values)})

    records = [shares(step, 0.9 if step % 2 else 0.0, 0.6, 0.7) for step in range(20)]
    findings = findings_of(GradientAboveOne(), records)
    assert findings
    assert {(finding.sign, finding.severity, finding.where) for finding in findings} == {
        ("gradient-above-one", Severity.INFO, "third")
    }
    assert findings_of(GradientAboveOne(), [shares(step, 0.1, 0.2, 0.3) for step in range(20)]) == []
    unmeasured = [record(step, per_parameter={}) for step in range(20)]
    assert findings_of(GradientAboveOne(), unmeasured) == []


def test_vanished_gradients_are_a_warning_and_never_critical() -> None:
    """Gradients next to nothing for long are a warning; a short lull and NaN are not."""
    findings = findings_of(VanishingGradient(), series("grad_norm", [1e-12] * 100))
    assert findings
    assert {(finding.sign, finding.severity) for finding in findings} == {("vanishing-gradient", Severity.WARNING)}
    assert findings[0].step > 0
    assert findings_of(VanishingGradient(), series("grad_norm", [1e-12, 1e-12, 1.0] * 50)) == []
    assert findings_of(VanishingGradient(), series("grad_norm", [math.nan] * 100)) == []


def test_gradients_of_exactly_zero_are_a_warning() -> None:
    """All of them for twenty steps have no place; those that died later have one; frozen ones are passed over."""

    def run(norms: list[float], steps: int = 30, **fields: object) -> list[StepRecord]:
        values = {"grad_norm": np.array(norms)}
        return [record(step, grad_norm=sum(norms), per_parameter=values, **fields) for step in range(steps)]

    (finding, *_) = findings_of(ZeroGradient(), run([0.0, 0.0, 0.0]))
    assert (finding.step, finding.severity, finding.where, finding.value) == (19, Severity.WARNING, None, 1.0)
    (finding, *_) = findings_of(ZeroGradient(), [*run([1.0, 1.0, 1.0], 5), *run([0.0, 0.0, 1.0])])
    assert (finding.severity, finding.where) == (Severity.WARNING, "first")
    assert "2 of 3" in finding.message
    assert findings_of(ZeroGradient(), run([0.0, 0.0, 1.0])) == []
    assert findings_of(ZeroGradient(), run([0.0, 0.0, 0.0], loss=0.0)) == []
    assert findings_of(ZeroGradient(), [*run([1.0, 1.0, 1.0], 5), *run([0.0, 0.0, 1.0], 19)]) == []


def test_experts_that_are_never_chosen_are_no_warning() -> None:
    """Most gradients are zero while the loss has come down: worth knowing, no more."""
    alive = {"grad_norm": np.array([1.0, 1.0, 1.0])}
    dead = {"grad_norm": np.array([0.0, 0.0, 1.0])}
    steps = [record(n, loss=1.0 if n < 5 else 0.5, per_parameter=alive if n < 5 else dead) for n in range(40)]
    assert {finding.severity for finding in findings_of(ZeroGradient(), steps)} == {Severity.INFO}


def test_gradients_that_are_zero_now_and_again_are_no_warning() -> None:
    """Small batches choose an expert every 15 steps, and once not for 40; that it is never chosen again is found."""
    alive = [*range(0, 120, 15), 145, *range(160, 200, 15)]
    last = alive[-1] + 1

    def step(number: int) -> StepRecord:
        norms = np.array([float(number in alive), float(number in alive), 1.0])
        return record(number, grad_norm=1.0, per_parameter={"grad_norm": norms})

    assert findings_of(ZeroGradient(), [step(number) for number in range(last)]) == []
    assert findings_of(ZeroGradient(), [step(number) for number in range(last + 150)])


def test_a_net_that_is_dead_from_the_start_is_a_warning_once_nothing_is_learned() -> None:
    """Only the last bias has a gradient, and the loss stays; with a lower loss it is a frozen net."""
    values = {"grad_norm": np.array([0.0, 0.0, 1.0])}
    stuck = findings_of(
        ZeroGradient(), [record(step, loss=1.0, grad_norm=1.0, per_parameter=values) for step in range(120)]
    )
    assert (stuck[0].step, stuck[0].severity) == (99, Severity.WARNING)
    losses = [0.99**step for step in range(120)]
    learning = [record(step, loss=loss, grad_norm=1.0, per_parameter=values) for step, loss in enumerate(losses)]
    assert findings_of(ZeroGradient(), learning) == []


def test_enormous_gradients_are_a_warning() -> None:
    """Unix times as inputs: elements of 1e12 at the first step that is logged; a loss in millions is none."""
    one = record(0, per_parameter={"share_above_one": np.ones(3)})
    for size in (1e12, 1e11):
        (finding,) = findings_of(GradientAboveOne(), [replace(one, grad_norm=2 * size, grad_max=size)])
        assert finding.severity is Severity.WARNING
        assert finding.value == pytest.approx(size)
    assert findings_of(GradientAboveOne(), [replace(one, grad_norm=1e10, grad_max=1e9)]) == []


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_that_hides_everything_is_a_warning(algorithm: str) -> None:
    """Nine in ten of the last steps clipped by more than a thousand; a single large step is what clipping is for."""
    size = {"grad_norm": 1e5, "grad_max": 1e5, "clip_val": 1.0, "clip_algorithm": algorithm}
    findings = findings_of(ClipSaturated(), [record(step, **size) for step in range(60)])
    assert findings
    assert (findings[0].step, findings[0].severity) == (49, Severity.WARNING)
    assert findings[0].value == pytest.approx(1e5)
    seldom = [record(step, **{**size, "grad_norm": 2.0, "grad_max": 2.0} if step % 5 else size) for step in range(90)]
    assert findings_of(ClipSaturated(), seldom) == []
    assert findings_of(ClipSaturated(), [record(step, **{**size, "clip_val": None}) for step in range(60)]) == []


def test_a_loss_without_a_floor_is_a_warning_before_it_is_critical() -> None:
    """Loss, gradients and weights run away together: the WARNING projects the weights, and CRITICAL comes later."""
    records = [record(n, loss=-0.1 * 1.1**n, grad_norm=0.1 * 1.08**n, weight_norm=10 * 1.02**n) for n in range(100)]
    detectors = DetectorSet([GradientGrowth()])
    findings = [
        finding for one in records for finding in detectors.check_before_update(one) + detectors.check_after_update(one)
    ]
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities)
    assert set(severities) == {Severity.WARNING, Severity.CRITICAL}
    assert "at this rate 40 times" in findings[0].message


def test_gradients_that_are_mostly_next_to_nothing_are_no_growth() -> None:
    """Sparse rewards: at seven steps in ten the norm is 1e-8, at the others about one, sometimes at three in a row."""
    seldom = np.random.default_rng(0).random(600) < 0.3
    steps = [record(step, loss=0.0, grad_norm=1.0 + step % 7 if seldom[step] else 1e-8) for step in range(600)]
    assert {finding.severity for finding in findings_of(GradientGrowth(), steps)} <= {Severity.INFO}
    warned = [one for one in findings_of(GradientSpike(), steps) if one.severity is Severity.WARNING]
    assert len(warned) <= 1
    lost = [*steps, *(record(600 + step, loss=0.0, grad_norm=100.0 * 3**step) for step in range(6))]
    assert Severity.CRITICAL in {finding.severity for finding in findings_of(GradientGrowth(), lost)}


@pytest.mark.parametrize(("start", "severity"), [(1.0, Severity.INFO), (1e-6, Severity.WARNING)])
def test_gradients_that_rise_from_nothing_are_harmless_while_they_are_small(start: float, severity: Severity) -> None:
    """A converged run leaves its minimum for some steps: the gradients rise a thousandfold, the loss hardly."""
    norms = [1e-6 * value for value in noise(40)] + [1e-5 * 1.8**step for step in range(8)]
    found = findings_of(GradientGrowth(), series("grad_norm", norms, loss=start))
    assert max(finding.severity for finding in found) is severity


@pytest.mark.parametrize("rising", [False, True])
def test_a_jump_of_the_gradients_to_a_new_level_is_critical_only_if_they_go_on_growing(rising: bool) -> None:
    """New data triple the loss and make gradients fifteen times as large: an explosion goes on from there."""
    detectors = DetectorSet([GradientGrowth()])
    norms = [*noise(100), *(15.0 * noise_ * (1.2**step if rising else 1.0) for step, noise_ in enumerate(noise(200)))]
    losses = [1.0 if step < 100 else 3.2 for step in range(300)]
    steps = [
        record(n, loss=loss, grad_norm=norm, weight_norm_before=10.0)
        for n, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    found = [
        finding.severity
        for one in steps
        for finding in (*detectors.check_before_update(one), *detectors.check_after_update(one))
    ]
    assert (Severity.CRITICAL in found) == rising


def test_a_level_of_the_gradients_that_lasts_becomes_the_usual_one() -> None:
    """Gradients that stay fifteen times as large are no growth two hundred steps later."""
    found = findings_of(GradientGrowth(), series("grad_norm", [*noise(100), *(15.0 * norm for norm in noise(400))]))
    assert found
    assert max(finding.step for finding in found) < 300


@pytest.mark.parametrize("later", [0.0, 1e-20, 1.0], ids=["zero", "next to nothing", "alive from the second step"])
def test_a_gradient_that_never_gets_to_the_first_module_is_a_warning(later: float) -> None:
    """It ends at saturated units in the middle; behind a layer that starts at zero it passes from the second step."""
    names = ("first.weight", "last.weight", "last.bias")
    unknown = np.full(3, math.nan)
    profile = ModuleGradients(
        modules=("first", "sigmoid", "last"),
        calls=np.ones(3),
        output_norm=np.array([0.0, 0.1, 0.2]),
        input_norm=np.array([math.nan, math.nan, 0.1]),
        gain=unknown,
        share_above_one=unknown,
        growth_in_time=unknown,
        singular_value=unknown,
    )
    steps = [
        record(
            step,
            loss=2.0 - 0.05 * step,
            parameters=names,
            module_gradients=profile if step == 0 else None,
            per_parameter={"grad_norm": np.array([later if step else 0.0, 0.1, 0.1])},
        )
        for step in range(30)
    ]
    found = findings_of(ZeroGradient(), steps)
    if later == 1.0:
        assert not found
    else:
        assert (found[0].step, found[0].severity, found[0].where) == (19, Severity.WARNING, "sigmoid")


@pytest.mark.parametrize("rate", [0.0, 0.05], ids=["as fast as before", "ever faster"])
@pytest.mark.parametrize("scatter", [0.0, 0.1], ids=["smooth", "noisy"])
@pytest.mark.parametrize("grown", [11.0, 20.0], ids=["weights of the same size", "larger weights"])
def test_a_loss_that_falls_ever_faster_by_larger_weights_is_a_warning(
    rate: float, scatter: float, grown: float
) -> None:
    """A log-likelihood falls below zero not ever faster, a reward does so by weights of much the same size."""
    chance = scatter * np.random.default_rng(0).standard_normal(100)
    falls = [(0.1 * n if rate == 0 else 0.2 * math.exp(rate * n)) + float(chance[n]) for n in range(100)]
    norms = [math.exp(0.03 * step) for step in range(100)]
    steps = [
        record(n, loss=1 - fall, grad_norm=norm, weight_norm=10.0 if n < 10 else grown)
        for n, (fall, norm) in enumerate(zip(falls, norms, strict=True))
    ]
    found = findings_of(GradientGrowth(far=1e9), steps)
    assert bool([finding for finding in found if "falls ever faster" in finding.message]) == (rate > 0 and grown > 15)


@pytest.mark.parametrize("level", [1e-5, 10.0], ids=["far below the start", "above the start"])
def test_gradients_that_rise_are_a_warning_only_above_their_highest_level(level: float) -> None:
    """A converged run, whose gradients have fallen to a millionth, has rises of a hundred times that are small."""
    fallen = [10.0 ** (-step / 10) for step in range(60)] + [1e-6 * value for value in noise(140)]
    rising = [level * 1.2**step for step in range(20)]
    steps = [record(step, loss=0.5 if step else 1.0, grad_norm=norm) for step, norm in enumerate([*fallen, *rising])]
    severities = {finding.severity for finding in findings_of(GradientGrowth(), steps)}
    assert (max(severities) > Severity.INFO) == (level > 1)
