"""The automatic policy on losses that are noisy, or that start next to zero: noise is no evidence against the steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradexplode.clip import AutoPolicy
from lightning_gradexplode.records import StepRecord


def _adaptive_filter(seed: int, rate: float, with_policy: bool = True) -> list[float]:
    """Train a linear filter from one sample per step; return the share of the error of its weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    truth, inputs = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((12,), (400, 12)))
    weight = nn.Parameter(0.1 * torch.ones(12, dtype=torch.float64))
    optimizer, policy = torch.optim.SGD([weight], lr=rate), AutoPolicy()
    policy.begin(optimizer)
    errors = []
    for step, sample in enumerate(inputs):
        optimizer.zero_grad()
        loss = (sample @ (weight - truth)).square()
        loss.backward()
        assert weight.grad is not None
        if with_policy:
            norm, start = float(weight.grad.norm()), float(weight.detach().norm()) if step == 0 else None
            record = StepRecord(step=step, loss=float(loss.detach()), grad_norm=norm, weight_norm_before=start)
            limit = policy.threshold(record)
            weight.grad.mul_(1.0 if limit is None else min(1.0, limit / norm))
            policy.step_begins(optimizer)
        optimizer.step()
        policy.step_ended(optimizer)
        errors.append(float((weight.detach() - truth).norm() / truth.norm()))
    return errors


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_noise_of_single_samples_does_not_keep_steps_small(seed: int) -> None:
    """The loss of one sample varies a thousandfold at the same weights; the rate is a third of what diverges."""
    assert _adaptive_filter(seed, 0.03)[-1] < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_rate_that_diverges_is_found_in_the_noise_of_single_samples(seed: int) -> None:
    """Without the policy the weights of the same run are lost."""
    assert _adaptive_filter(seed, 0.25, with_policy=False)[-1] > 1e3
    assert _adaptive_filter(seed, 0.25)[-1] < 1.0


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_loss_that_leaves_zero_by_less_than_steps_change_it_by_is_no_failure(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    """Policy gradients of centered rewards start at zero, where half of the start is no limit."""
    policy = AutoPolicy()
    policy.begin(optimizer([nn.Parameter(torch.ones(100))], lr=0.001))  # type: ignore[call-arg]
    for step in range(80):
        loss = 1e-3 * (1 - 0.9**step) * (1 + 0.1 * math.sin(step))
        policy.threshold(StepRecord(step=step, loss=loss, grad_norm=1.0, weight_norm_before=10.0))
        assert policy.scalars() == {"step_size_factor": 1.0}


@pytest.mark.parametrize("seed", range(2))
def test_a_rate_that_has_failed_is_not_returned_to_under_cover_of_noise(seed: int) -> None:
    """Batches of one and of 256 samples in turn, at ten times a rate that works: the noise hides a slow rise."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    parameters, truth = [*network.parameters()], torch.randn(6)
    optimizer, policy = torch.optim.SGD(parameters, lr=0.5), AutoPolicy()
    policy.begin(optimizer)
    for step in range(300):
        optimizer.zero_grad()
        inputs = torch.randn(1 if step % 2 else 256, 6)
        loss = (network(inputs)[:, 0] - torch.sin(inputs @ truth) - 0.3 * torch.randn(len(inputs))).square().mean()
        loss.backward()
        norm, start = (
            math.sqrt(sum(float(one.detach().square().sum()) for one in tensors))
            for tensors in ([one.grad for one in parameters if one.grad is not None], parameters)
        )
        record = StepRecord(
            step=step, loss=float(loss.detach()), grad_norm=norm, weight_norm_before=None if step else start
        )
        limit = policy.threshold(record)
        for one in parameters:
            assert one.grad is not None
            one.grad.mul_(1.0 if limit is None else min(1.0, limit / norm))
        policy.step_begins(optimizer)
        optimizer.step()
        policy.step_ended(optimizer)
    samples = torch.randn(500, 6)
    with torch.no_grad():
        error = float((network(samples)[:, 0] - torch.sin(samples @ truth)).square().mean())
    assert error < 1.0
