"""Clip policies, and clipping itself against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.respond import AutoPolicy, ClipPolicy, ConstantClip, clip_policy
from lightning_gradexplode.respond.apply import clip_gradients
from tests.detect.steps import noise, through_checkpoint

element = st.floats(-1e4, 1e4, width=32)
gradient_lists = st.lists(st.lists(element, min_size=1, max_size=6), min_size=1, max_size=4)


def thresholds(policy: ClipPolicy, norms: list[float | None]) -> list[float | None]:
    """Ask a policy about steps with these norms."""
    return [policy.threshold(StepRecord(step=step, grad_norm=norm)) for step, norm in enumerate(norms)]


@given(gradient_lists, st.floats(0.01, 1e5), st.sampled_from(["norm", "value"]), st.sampled_from([1.0, 1024.0]))
def test_clipping_is_torchs(layers: list[list[float]], threshold: float, algorithm: str, scale: float) -> None:
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
        (math.nan, ValueError, ["clip", "nan", "finite"]),
        (math.inf, ValueError, ["clip", "inf", "finite"]),
        ("automatic", ValueError, ["clip", "'automatic'", "'auto'"]),
        (True, TypeError, ["clip", "True", "number"]),
        ([1.0], TypeError, ["clip", "[1.0]", "number", "'auto'"]),
    ],
)
def test_what_clip_does_not_take(argument: object, error: type[Exception], words: list[str]) -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(error) as raised:
        clip_policy(argument)  # type: ignore[arg-type]
    assert all(word in str(raised.value) for word in words)


def test_an_unknown_algorithm() -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(ValueError, match=r"algorithm.*'median'.*'norm'.*'value'"):
        ConstantClip(1.0, "median")  # type: ignore[arg-type]


def test_what_clip_takes() -> None:
    """A number, a name, a policy of one's own and None each give the policy they stand for."""
    own = ConstantClip(3.0)
    constant = clip_policy(2)
    assert isinstance(constant, ConstantClip)
    assert (constant.value, constant.algorithm) == (2.0, "norm")
    assert isinstance(clip_policy("auto"), AutoPolicy)
    assert clip_policy(own) is own
    assert clip_policy(None) is None


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1e30), st.sampled_from([math.nan, math.inf])), max_size=60))
def test_the_automatic_threshold_is_usable_whatever_comes(norms: list[float | None]) -> None:
    """The automatic threshold is positive and finite or none at all, as Lightning takes nothing else."""
    for threshold in thresholds(AutoPolicy(), norms):
        assert threshold is None or (math.isfinite(threshold) and threshold > 0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_automatic_threshold_follows_the_run(size: float) -> None:
    """Once the run is known, usual gradients mostly pass, and the threshold is within what Pascanu et al. found."""
    norms = [size * value for value in noise(300, 0.2)]
    found = [threshold for threshold in thresholds(AutoPolicy(), [*norms]) if threshold is not None]
    late = list(zip(norms[100:], found[100:], strict=True))
    assert all(0.5 * size < threshold < 10 * size for _, threshold in late)
    assert sum(norm > threshold for norm, threshold in late) < 0.1 * len(late)


@pytest.mark.parametrize("rate", [1.05, 1.5, 4.0])
def test_an_explosion_does_not_raise_its_own_threshold(rate: float) -> None:
    """However long the gradients explode, the threshold stays near the size that was usual before."""
    policy = AutoPolicy()
    thresholds(policy, [*noise(100)])
    held = thresholds(policy, [min(rate**step, 1e30) for step in range(300)])
    assert all(threshold is not None and threshold < 10 for threshold in held)


def test_the_automatic_threshold_goes_through_a_checkpoint() -> None:
    """A resumed run clips as one that was never stopped."""
    policy, resumed = AutoPolicy(), AutoPolicy()
    thresholds(policy, [*noise(40)])
    resumed.load_state_dict(through_checkpoint(policy.state_dict()))
    assert thresholds(resumed, [*noise(40, seed=1)]) == thresholds(policy, [*noise(40, seed=1)])
