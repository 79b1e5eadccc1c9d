"""The first weight that an update has made non-finite, in optimizers whose arithmetic is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradexplode.measure.update_fault import find_update_fault


def network() -> Any:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_adam_without_epsilon_divides_nothing_by_nothing() -> None:
    """A weight whose gradient was always 0 is 0/0, and the state shows it."""
    module = network()
    before = {name: one.detach().clone() for name, one in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), eps=0.0)
    for one in module.parameters():
        one.grad = torch.ones_like(one)
    module[1].weight.grad[0, 1] = 0.0
    optimizer.step()

    fault = find_update_fault(module, [optimizer], before, with_gradient=True)

    assert fault is not None
    assert (fault.parameter, fault.optimizer, fault.element_count) == ("1.weight", 0, 1)
    assert math.isnan(fault.weight or 0.0)
    assert fault.weight_before == pytest.approx(before["1.weight"][0, 1].item())
    assert fault.gradient == 0.0
    assert fault.state == {"step": 1.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}


def test_of_several_optimizers_the_one_at_fault_is_named() -> None:
    """A huge momentum overflows; what is not known is left out."""
    module = network()
    optimizers: list[Any] = [
        torch.optim.SGD(module[0].parameters(), lr=0.1),
        torch.optim.SGD(module[1].parameters(), lr=1e10, momentum=0.9),
    ]
    for one in module.parameters():
        one.grad = torch.full_like(one, 1e30)
    for each in optimizers:
        each.step()

    fault = find_update_fault(module, optimizers, with_gradient=False)

    assert fault is not None
    assert (fault.parameter, fault.optimizer, fault.element_count) == ("1.weight", 1, 3)
    assert fault.weight == -math.inf
    assert (fault.weight_before, fault.gradient) == (None, None)
    assert fault.state["momentum_buffer"] == pytest.approx(1e30)


def test_finite_weights_have_no_fault() -> None:
    """Neither has an optimizer of parameters that are not strided, or without a state."""
    module = network()
    assert find_update_fault(module, [torch.optim.SGD(module.parameters(), lr=0.1)], with_gradient=True) is None
    assert find_update_fault(module, [object()], with_gradient=True) is None


def test_a_weight_that_only_the_optimizer_holds_has_no_name() -> None:
    """Its place is known nevertheless."""
    loose = nn.Parameter(torch.tensor([1.0, math.nan]))
    fault = find_update_fault(network(), [torch.optim.SGD([loose], lr=0.1)], with_gradient=True)
    assert fault is not None
    assert (fault.parameter, fault.element_count) == ("", 1)
