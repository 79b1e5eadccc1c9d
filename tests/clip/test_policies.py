"""Clip policies, and clipping itself against torch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    AutoPolicy,
    ClipPolicy,
    ConstantClip,
    PercentileClip,
    ZScoreClip,
)
from lightning_gradexplode.clip.apply import clip_gradients
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import ParameterSet, parameters_of
from lightning_gradexplode.records import FloatArray, StepRecord
from tests.detect.steps import noise, numbers_in, through_checkpoint

element = st.floats(-1e4, 1e4, width=32)
gradient_lists = st.lists(st.lists(element, min_size=1, max_size=6), min_size=1, max_size=4)


def thresholds(policy: ClipPolicy, norms: list[float | None]) -> list[float | None]:
    """Return the thresholds of a policy for steps with these norms."""
    return [policy.threshold(StepRecord(step=step, grad_norm=norm)) for step, norm in enumerate(norms)]


@given(gradient_lists, st.floats(0.01, 1e5), st.sampled_from(["norm", "value"]), st.sampled_from([1.0, 1024.0]))
def test_clipping_is_that_of_torch(layers: list[list[float]], threshold: float, algorithm: str, scale: float) -> None:
    """Gradients come out as from ``clip_grad_norm_`` and ``clip_grad_value_``, also while AMP has them scaled."""
    ours = [torch.tensor(layer) for layer in layers]
    theirs = [nn.Parameter(torch.zeros(len(layer))) for layer in layers]
    for parameter, layer in zip(theirs, layers, strict=True):
        parameter.grad = torch.tensor(layer)
    if algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(theirs, threshold)
    else:
        torch.nn.utils.clip_grad_value_(theirs, threshold)
    norm = measure_norms(ours).total
    scaled: list[Tensor | None] = [gradient * scale for gradient in ours]
    clip_gradients([*scaled, None], threshold, algorithm, norm, scale)
    for gradient, parameter in zip(scaled, theirs, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient / scale, parameter.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipping_nonfinite_gradients_is_torchs(algorithm: str, bad: float) -> None:
    """Non-finite gradients come out as from torch, too: clipping is no place to hide them."""
    ours = torch.tensor([bad, 3.0, -4.0])
    theirs = nn.Parameter(torch.zeros(3))
    theirs.grad = ours.clone()
    clip = torch.nn.utils.clip_grad_norm_ if algorithm == "norm" else torch.nn.utils.clip_grad_value_
    clip([theirs], 1.0)
    clip_gradients([ours], 1.0, algorithm, measure_norms([ours]).total)
    torch.testing.assert_close(ours, theirs.grad, equal_nan=True)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_no_gradients_to_clip(algorithm: str) -> None:
    """Nothing to clip is no error, and gradients within the threshold keep their bits."""
    clip_gradients([None], 1.0, algorithm, 0.0)
    clip_gradients([], 1.0, algorithm, 0.0)
    small = torch.tensor([0.1, -0.3])
    clip_gradients([small], 1.0, algorithm, measure_norms([small]).total)
    assert torch.equal(small, torch.tensor([0.1, -0.3]))


def test_a_constant_stays_constant() -> None:
    """The threshold is the same whatever the norms are."""
    policy = ConstantClip(0.5, "value")
    assert policy.algorithm == "value"
    assert thresholds(policy, [1.0, math.nan, math.inf, None, 0.0]) == [0.5] * 5


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        (0, ValueError, ["clip", "0", "positive"]),
        (-1.0, ValueError, ["clip", "-1.0", "positive"]),
        (math.nan, ValueError, ["clip", "nan", "positive"]),
        (math.inf, ValueError, ["clip", "inf", "positive"]),
        ("automatic", ValueError, ["clip", "'automatic'", '"auto"']),
        (True, TypeError, ["clip", "True", "number"]),
        ([1.0], TypeError, ["clip", "[1.0]", "number", '"auto"']),
    ],
)
def test_what_clip_does_not_take(argument: Any, error: type[Exception], words: list[str]) -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(error) as raised:
        Arguments.checked(clip=argument)
    assert all(word in str(raised.value) for word in words)


def test_an_unknown_algorithm_is_refused() -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(ValueError, match=r"algorithm must be 'norm' or 'value', got 'median'"):
        ConstantClip(1.0, "median")  # type: ignore[arg-type]


def test_clip_takes_numbers_names_and_policies() -> None:
    """A number, a name, a policy of one's own and None each give the policy they stand for."""
    own = ConstantClip(3.0)
    constant = Arguments.checked(clip=2).clip
    assert isinstance(constant, ConstantClip)
    assert (constant.value, constant.algorithm) == (2.0, "norm")
    assert isinstance(Arguments.checked(clip="auto").clip, AutoPolicy)
    assert Arguments.checked(clip=own).clip is own
    assert Arguments.checked(clip=None).clip is None


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1e30), st.sampled_from([math.nan, math.inf])), max_size=60))
def test_thresholds_are_usable_whatever_comes(norms: list[float | None]) -> None:
    """A threshold is positive and finite or none at all, as Lightning takes nothing else."""
    everyone = [thresholds(policy, norms) for policy in (AutoPolicy(), PercentileClip(window=9), ZScoreClip(warmup=5))]
    for threshold in [one for found in everyone for one in found]:
        assert threshold is None or (math.isfinite(threshold) and threshold > 0)


def test_a_percentile_of_the_last_norms() -> None:
    """The threshold is numpy's percentile of the last norms, this one included; NaN is left out."""
    norms = [*noise(30), math.nan, *noise(20, seed=1)]
    found = thresholds(PercentileClip(25.0, window=16), [*norms])
    finite: list[float] = []
    for norm, threshold in zip(norms, found, strict=True):
        if math.isfinite(norm):
            finite.append(norm)
        assert threshold == pytest.approx(float(np.percentile(finite[-16:], 25.0)))


def test_the_z_score_clips_outliers_the_more_the_farther_out_they_are() -> None:
    """An outlier is clipped to mean + z * deviation / (score / z), and what is usual is not."""
    policy = ZScoreClip(limit=2.0, warmup=4)
    assert thresholds(policy, [1.0, 3.0, 1.0, 3.0]) == [None] * 4  # mean 2, deviation 1
    assert copy.deepcopy(policy).threshold(StepRecord(step=4, grad_norm=3.0)) == pytest.approx(4.0)
    assert copy.deepcopy(policy).threshold(StepRecord(step=4, grad_norm=10.0)) == pytest.approx(2.5)
    assert policy.threshold(StepRecord(step=4, grad_norm=1e12)) == pytest.approx(2.0, rel=1e-6)
    assert policy.threshold(StepRecord(step=5, grad_norm=math.nan)) == pytest.approx(4.0, rel=0.1)
    assert all(math.isfinite(number) for number in numbers_in(policy.state_dict()))


def layers(build: Callable[[], nn.Module], factor: float = 1.0) -> tuple[ParameterSet, FloatArray]:
    """Return the parameters of a network, with gradients of random numbers, and the gradients' norms."""
    torch.manual_seed(2)
    module = build()
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * factor
    found = parameters_of(torch.optim.SGD(module.parameters(), lr=0.1), module)
    return found, measure_norms(found.gradients).each


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_units_are_clipped_to_their_weights(scale: float) -> None:
    """A plain loop over rows, filters and vectors gives the same; the scale of AMP makes no difference."""
    parameters, norms = layers(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5), nn.BatchNorm1d(5)))
    expected = []
    for name, parameter in zip(parameters.names, parameters.tensors, strict=True):
        gradients = parameter.grad
        assert gradients is not None
        rows: Any = [(parameter, gradients)] if parameter.ndim < 2 else zip(parameter, gradients, strict=True)
        clipped = []
        for weight, gradient in rows:
            limit = 0.1 * max(float(weight.detach().norm()), 1e-3)
            clipped.append(gradient if name == "1.bias" else gradient * min(1.0, limit / float(gradient.norm())))
        expected.append(clipped[0].clone() if parameter.ndim < 2 else torch.stack(clipped))
        gradients.mul_(scale)
    policy = AdaptiveGradientClip(0.1, exclude=["1.bias"])
    assert policy.clip_tensors(parameters, norms, scale, True)
    for parameter, truth in zip(parameters.tensors, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / scale, truth.detach(), rtol=1e-5, atol=1e-8)


def test_tensors_are_clipped_by_their_own_averages() -> None:
    """After the warm-up each tensor is held to its average, and the averages are those of clipped norms."""
    policy = AdaptiveTensorClip(factor=1.05, decay=0.98, warmup=2, first=1.0)
    average = np.full(2, np.inf)
    for step, factor in enumerate((1.0, 0.5, 1.0, 100.0, math.nan, 1.0)):
        parameters, norms = layers(lambda: nn.Linear(4, 5), factor)
        bound = policy.clip_tensors(parameters, norms, 1.0, True)
        after = measure_norms(parameters.gradients).each
        if step < 2:
            assert float(np.linalg.norm(after)) == pytest.approx(1.0)
            average = np.minimum(average, after)
            continue
        assert bound == math.isfinite(factor)
        if bound:
            assert after == pytest.approx(np.minimum(norms, 1.05 * average))
            average = 0.98 * average + 0.02 * after
    assert policy.state_dict()["_averages"] == pytest.approx(average.tolist())


@pytest.mark.parametrize("policy", [AdaptiveGradientClip(), AdaptiveTensorClip(warmup=1)])
def test_what_no_tensors_limit_binds_keeps_its_bits(policy: ClipPolicy) -> None:
    """Small gradients are the same bit for bit, a missing one is no trouble, and nothing is said to be clipped."""
    parameters, norms = layers(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), 1e-6)
    parameters.tensors[3].grad = None
    before = copy.deepcopy(parameters.gradients)
    for _ in range(3):
        assert not policy.clip_tensors(parameters, norms, 1.0, True)
    for one, other in zip(before[:3], parameters.gradients[:3], strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", [AutoPolicy, PercentileClip, ZScoreClip])
def test_thresholds_go_through_a_checkpoint(build: Callable[[], ClipPolicy]) -> None:
    """A resumed run clips as one that was never stopped."""
    policy, resumed = build(), build()
    records = [StepRecord(step=s, grad_norm=n, loss=n, weight_norm_before=1.0) for s, n in enumerate(noise(80))]
    for record in records[:40]:
        policy.threshold(record)
    resumed.load_state_dict(through_checkpoint(policy.state_dict()))
    assert [resumed.threshold(record) for record in records[40:]] == [policy.threshold(one) for one in records[40:]]


def test_averages_of_tensors_go_through_a_checkpoint() -> None:
    """A resumed run clips each tensor as one that was never stopped."""
    policy, resumed = AdaptiveTensorClip(warmup=1), AdaptiveTensorClip(warmup=1)
    for _ in range(3):
        policy.clip_tensors(*layers(lambda: nn.Linear(4, 5)), 1.0, True)
    resumed.load_state_dict(through_checkpoint(policy.state_dict()))
    gradients = []
    for one in (policy, resumed):
        parameters, norms = layers(lambda: nn.Linear(4, 5), 3.0)
        assert one.clip_tensors(parameters, norms, 1.0, True)
        gradients.append(torch.cat([g.flatten() for g in parameters.gradients if g is not None]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "words"),
    [
        (AutoPolicy, {"factor": 0.0}, ValueError, ["factor", "0.0"]),
        (PercentileClip, {"percentile": 101}, ValueError, ["percentile", "101", "100"]),
        (ZScoreClip, {"warmup": 1}, ValueError, ["warmup", "1", "at least 2"]),
        (ZScoreClip, {"decay": "slow"}, TypeError, ["decay", "'slow'", "number"]),
        (AdaptiveGradientClip, {"share": -1.0}, ValueError, ["share", "-1.0"]),
        (AdaptiveGradientClip, {"exclude": "head"}, TypeError, ["exclude", "'head'", "sequence"]),
        (AdaptiveTensorClip, {"factor": math.nan}, ValueError, ["factor", "nan"]),
    ],
)
def test_what_policies_do_not_take(
    kind: Callable[..., ClipPolicy], arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(error) as raised:
        kind(**arguments)
    assert all(word in str(raised.value) for word in words)
