"""The rules of other tools, at records for which the correct answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.other_packages import PACKAGES
from benchmarks.other_rules import (
    DeepChecker,
    FirstOverLast,
    LightningSpike,
    NormAboveHundred,
    NormAboveOne,
    NotANumber,
    Rule,
    SixSigma,
    TenTimesLargest,
    UpdateRatio,
    Vanishing,
    ZClip,
)
from lightning_gradexplode import StepRecord


def alarms(rule: Rule, norms: list[float]) -> list[int]:
    return [step for step, norm in enumerate(norms) if rule.alarms(StepRecord(step=step, grad_norm=norm))]


def layers(*norms: float, **more: list[float]) -> StepRecord:
    names = tuple(f"layer{number}.weight" for number in range(len(norms)))
    quantities = {"grad_norm": list(norms), **more}
    return StepRecord(step=0, parameters=names, per_parameter={n: np.array(v) for n, v in quantities.items()})


@pytest.mark.parametrize(("rule", "limit"), [(NormAboveOne(), 1.0), (NormAboveHundred(), 100.0)])
def test_a_constant_limit_alarms_above_it_and_at_nan(rule: Rule, limit: float) -> None:
    """A norm at the limit is none, above it and NaN are alarms."""
    assert alarms(rule, [limit, 1.01 * limit, math.nan, math.inf]) == [1, 2, 3]


def test_the_rule_on_nan_reads_losses_and_weights() -> None:
    """An infinite loss or a NaN weight is an alarm; a large loss is none."""
    rule = NotANumber()
    assert rule.alarms(StepRecord(step=0, loss=math.inf))
    assert rule.alarms(StepRecord(step=0, loss=1.0, nonfinite_weights=1))
    assert not rule.alarms(StepRecord(step=0, loss=1e30, nonfinite_weights=0))


def test_lightnings_rule_compares_with_three_times_the_mean() -> None:
    """After ones, 2.9 passes; 3.1 is more than twice the mean away from it and is none of the history."""
    rule = LightningSpike()
    seen = [rule.alarms(StepRecord(step=step, loss=loss)) for step, loss in enumerate([1.0, 1.0, 1.0, 3.1, 1.0, 2.9])]
    assert seen == [False, False, False, True, False, False]


def test_six_sigma_waits_for_sixty_four_steps() -> None:
    """Norms of one and three in turn have mean two and deviation one: the limit is eight, from step 64 on."""
    norms = [1.0, 3.0] * 32
    assert alarms(SixSigma(), [*norms, 7.9]) == []
    assert alarms(SixSigma(), [*norms, 8.1]) == [64]
    assert alarms(SixSigma(), [*norms[:62], 100.0]) == []


def test_zclip_scores_after_its_warmup() -> None:
    """Norms of one and three for 24 steps and a two: a norm of five scores three, one of four scores two."""
    norms = [1.0, 3.0] * 12 + [2.0]
    assert alarms(ZClip(), [*norms, 5.0]) == [25]
    assert alarms(ZClip(), [*norms, 4.0]) == []


def test_ten_times_the_largest_of_a_hundred() -> None:
    """In the first hundred steps there is no alarm; then above ten times their largest norm."""
    assert alarms(TenTimesLargest(), [1.0] * 99 + [2.0, 19.0, 21.0]) == [101]


def test_first_over_last_layer() -> None:
    """A ratio of 71 is an alarm, one of 69 is none, and neither is the opposite."""
    assert FirstOverLast().alarms(layers(71.0, 5.0, 1.0))
    assert not FirstOverLast().alarms(layers(69.0, 5.0, 1.0))
    assert not FirstOverLast().alarms(layers(1.0, 5.0, 71.0))


def test_deep_checker_needs_four_ratios_in_a_row() -> None:
    """Norms that double four times towards the input are an alarm, three times are none; so is a level of 1e6."""
    assert DeepChecker().alarms(layers(16.0, 8.0, 4.0, 2.0, 1.0))
    assert not DeepChecker().alarms(layers(8.0, 4.0, 2.0, 1.0))
    assert not DeepChecker().alarms(layers(1.0, 2.0, 4.0, 8.0, 16.0))
    assert DeepChecker().alarms(layers(2e6))


def test_update_ratio_has_two_limits() -> None:
    """A ratio above ten or below 1e-8 is an alarm, unless there was no gradient."""
    assert UpdateRatio().alarms(layers(1.0, update_ratio=[11.0]))
    assert UpdateRatio().alarms(layers(1.0, update_ratio=[1e-9]))
    assert not UpdateRatio().alarms(layers(1.0, update_ratio=[1e-3]))
    assert not UpdateRatio().alarms(layers(0.0, update_ratio=[0.0]))


def test_vanishing_looks_at_every_tensor() -> None:
    """One tensor with next to no gradient is enough."""
    assert Vanishing().alarms(layers(1.0, 1e-8))
    assert not Vanishing().alarms(layers(1.0, 1e-6))


@pytest.mark.parametrize("package", PACKAGES)
def test_another_package_finds_an_explosion_and_not_a_constant(package: type[Rule]) -> None:
    """Losses and norms that double at each step raise an alarm, constant ones do not."""

    def record(step: int, size: float) -> StepRecord:
        norms = {"grad_norm": np.array([size])}
        return StepRecord(step=step, parameters=("layer",), loss=size, grad_norm=size, per_parameter=norms)

    rule = package()
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 100)
    assert not any(rule.alarms(record(step, size)) for step, size in enumerate(noise))
    assert any(rule.alarms(record(100 + step, 2.0**step)) for step in range(20))
