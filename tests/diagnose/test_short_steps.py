"""Whether a loss has risen in steps that were too short to overshoot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.short_steps import rises_in_short_steps
from lightning_gradexplode.records import Evidence, OptimizerFacts
from tests.diagnose.evidence import finding, history, run


def descended(rate: float, sign: float, kind: str = "SGD") -> Evidence:
    """Return the evidence of gradient descent on a small network, along gradients that are multiplied by a sign."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    rows = torch.randn(64, 4)
    weights = list(network.parameters())
    losses: list[float] = []
    norms: list[float] = []
    while len(losses) < 200 and (not losses or losses[-1] < 1e6):
        loss: Tensor = (network(rows) - rows.sum(1, keepdim=True)).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        losses.append(float(loss.detach()))
        norms.append(float(torch.cat([one.flatten() for one in gradients]).norm()))
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(rate * sign * gradient)
    values = {"loss": losses, "grad_norm": norms, "learning_rate": [rate] * len(losses)}
    last = len(losses) - 1
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": rate, "momentum": 0.0},)),))
    return Evidence(last, last, (finding("diverging-loss", last),), facts, (history(values),))


@pytest.mark.parametrize(
    ("rate", "sign", "kind", "is_short"),
    [(0.02, -1.0, "SGD", True), (0.6, 1.0, "SGD", False), (2.0, 1.0, "SGD", False), (0.02, -1.0, "Adam", False)],
    ids=["upward", "too far", "much too far", "another formula"],
)
def test_steps_upward_are_short_where_the_loss_begins_to_rise(
    rate: float, sign: float, kind: str, is_short: bool
) -> None:
    """Steps of a rate that is too high are long as soon as the loss has doubled."""
    evidence = descended(rate, sign, kind)
    assert np.max(evidence.history[0].values["loss"]) > 10 * evidence.history[0].values["loss"][0]
    assert rises_in_short_steps(evidence) is is_short
