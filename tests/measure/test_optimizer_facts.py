"""The kind and the hyperparameters of optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.measure.modules import facts_of


def test_optimizers_are_described_by_their_groups() -> None:
    """Hyperparameters are plain numbers, also a learning rate that is a tensor; no parameter is in them."""
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [module.weight], "lr": torch.tensor(0.25)}, {"params": [module.bias], "weight_decay": 0.0}],
        lr=0.5,
        betas=(0.8, 0.9),
        eps=1e-4,
    )
    (fresh,) = facts_of(module, optimizer).optimizers
    assert (fresh.kind, fresh.steps_taken, fresh.has_state) == ("AdamW", 0, False)
    assert fresh.groups[0].items() >= {"lr": 0.25, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4, "maximize": False}.items()
    assert fresh.groups[1].items() >= {"lr": 0.5, "weight_decay": 0.0}.items()
    for _ in range(3):
        torch.autograd.backward(module(torch.ones(1, 2)).sum())
        optimizer.step()
    (used,) = facts_of(module, optimizer).optimizers
    assert (used.steps_taken, used.has_state) == (3, True)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_running_squares_belong_to_a_gradient_norm(steps: int) -> None:
    """Of gradients that stay the same it is theirs after any number of steps; without running squares it is unknown."""
    module = nn.Linear(3, 2)
    squares = (
        torch.optim.Adam(module.parameters(), betas=(0.5, 0.99)),
        torch.optim.RMSprop(module.parameters(), alpha=0.8),
    )
    for _ in range(steps):
        module.weight.grad, module.bias.grad = torch.full((2, 3), 2.0), torch.tensor([-3.0, 1.0])
        for one in squares:
            one.step()
    for one in squares:
        (facts,) = facts_of(module, one).optimizers
        assert facts.state_grad_norm == pytest.approx((6 * 4 + 9 + 1) ** 0.5, rel=1e-5)
    (without,) = facts_of(module, torch.optim.SGD(module.parameters())).optimizers
    assert without.state_grad_norm is None


class Lookahead(torch.optim.Optimizer):
    """A wrapper that does not call the constructor of torch's class."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)


def test_wrapped_optimizers_are_described_by_what_they_wrap() -> None:
    """Groups and state are the inner optimizer's, and both names are there."""
    module = nn.Linear(2, 2)
    inner = torch.optim.Adam(module.parameters(), lr=0.5)
    module(torch.ones(1, 2)).sum().backward()
    inner.step()
    facts = facts_of(module, Lookahead(inner))
    assert (facts.optimizers[0].kind, facts.optimizers[0].steps_taken) == ("Lookahead(Adam)", 1)
    assert facts.optimizers[0].groups[0]["lr"] == 0.5
    assert [one.optimizer for one in facts.parameters] == [0, 0]
