"""Clip values that a device computes, against those that the host computes from the same norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gradexplode import PercentileClip, StepRecord, ZScoreClip
from lightning_gradexplode.clip import ClipPolicy, GuardedPolicy
from lightning_gradexplode.clip.apply import clip_on_device

NORMS = st.lists(st.floats(1e-30, 1e30) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=40)


def on_both(policy: ClipPolicy, norm: float) -> tuple[float, float]:
    """Return the clip value of a step from the device and from the host, infinity where nothing is clipped."""
    found = policy.threshold_on_device(torch.tensor(norm, dtype=torch.float64))
    assert found is not None
    value = policy.threshold(StepRecord(step=0, grad_norm=norm))
    return float(found), math.inf if value is None else value


@given(NORMS, st.floats(0.1, 100.0) | st.sampled_from([10.0, 50.0, 100.0]), st.integers(1, 12))
def test_the_percentile_is_the_same(norms: list[float], percentile: float, window: int) -> None:
    """Whatever the norms, the share and the length of the history, also where it is full."""
    policy = PercentileClip(percentile, window)
    for norm in norms:
        device, host = on_both(policy, norm)
        assert device == pytest.approx(host, rel=1e-9)


@given(NORMS, st.floats(0.5, 5.0))
def test_the_score_is_the_same(norms: list[float], limit: float) -> None:
    """In the warm-up nothing is clipped; later outliers are clipped to the same value."""
    policy = ZScoreClip(limit, warmup=3)
    for norm in norms:
        device, host = on_both(policy, norm)
        assert device == pytest.approx(host, rel=1e-9)


def test_the_score_of_a_norm_after_those_that_are_almost_zero_is_the_same() -> None:
    """A hundredth of their mean is zero, which nothing can be divided by."""
    policy = ZScoreClip(warmup=2)
    for norm in (5e-324, 5e-324, 5e-324, 1e-300):
        device, host = on_both(policy, norm)
        assert device == host


@pytest.mark.parametrize("policy", [PercentileClip(), ZScoreClip(warmup=2)])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_not_remembered(policy: ClipPolicy, norm: float) -> None:
    """The device may compute what it likes for it: the step after it has the same clip value as if it had not been."""
    for one in (1.0, 2.0, 3.0, norm):
        policy.threshold_on_device(torch.tensor(one))
        policy.threshold(StepRecord(step=0, grad_norm=one))
    device, host = on_both(policy, 2.5)
    assert device == pytest.approx(host)
    assert math.isfinite(host)


@pytest.mark.parametrize("base", [PercentileClip, ZScoreClip])
def test_a_threshold_of_a_subclass_is_left_to_the_host(base: Any) -> None:
    """The device would compute another one."""

    class Half(base):  # type: ignore[misc]
        def threshold(self, record: StepRecord) -> float | None:
            value = super().threshold(record)
            return None if value is None else value / 2

    assert Half().threshold_on_device(torch.tensor(1.0)) is None


@pytest.mark.parametrize("wrong", [1.0, None, "norm", torch.ones(2), ValueError])
def test_what_is_no_number_on_the_device_is_left_to_the_host(wrong: Any) -> None:
    """A policy that raises is switched off, as anywhere."""

    class Wrong(PercentileClip):
        def threshold_on_device(self, norm: Tensor) -> Any:
            if wrong is ValueError:
                raise ValueError("on purpose")
            return wrong

    guarded = GuardedPolicy(Wrong())
    assert guarded.threshold_on_device(torch.tensor(1.0)) is None
    assert guarded.is_off == (wrong is ValueError)


@pytest.mark.parametrize("threshold", [0.01, 1.0, 1e6, math.inf])
def test_a_clip_by_a_tensor_is_torch_s(threshold: float) -> None:
    """Gradients of several types are what ``clip_grad_norm_`` makes of them; those below are left bit for bit."""
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7).double(), torch.randn(4)]
    others = [torch.nn.Parameter(one.clone()) for one in ours]
    for one, gradient in zip(others, ours, strict=True):
        one.grad = gradient.clone()
    total = torch.linalg.vector_norm(torch.cat([one.double().flatten() for one in ours]))
    clip_on_device([*ours, None], torch.tensor(threshold), total)
    torch.nn.utils.clip_grad_norm_(others, min(threshold, 1e9))
    for gradient, other in zip(ours, others, strict=True):
        assert other.grad is not None
        torch.testing.assert_close(gradient, other.grad, rtol=1e-6, atol=0)
        assert threshold < 10 or torch.equal(gradient, other.grad)
