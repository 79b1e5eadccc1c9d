"""Estimates of a coming step, compared with the step that the optimizer of torch then makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad

from lightning_gradexplode.clip.step_size.planned_step import planned_step
from tests.detect.steps import record


@pytest.mark.parametrize("fields", [{"lr": None}, {"lr": None, "momentum": None}])
def test_an_optimizer_that_computes_its_own_rate_has_no_planned_step(fields: dict[str, None]) -> None:
    """The rate of such an optimizer, as Adafactor's, is None, which is no failure of the policy."""
    optimizer = SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    optimizer.param_groups[0].update(fields)
    assert planned_step(optimizer, record(0), 1.0) is None


@pytest.mark.parametrize("steps", [1, 30, 300])
def test_steps_of_adagrad_become_shorter(steps: int) -> None:
    """It divides by the root of the sum of all squared gradients; the estimate follows within a factor of three."""
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(200))
    optimizer = Adagrad([weights], lr=0.1)
    for _ in range(steps):
        weights.grad = torch.randn(200)
        before = weights.detach().clone()
        norm = float(before.norm())
        planned = planned_step(optimizer, record(0, grad_norm=float(weights.grad.norm())), norm)
        optimizer.step()
    assert planned is not None
    moved = float((weights.detach() - before).norm()) / norm
    assert moved / 3 < planned.move < 3 * moved
