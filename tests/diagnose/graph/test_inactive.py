"""An operation that passes no gradient is found in the graph of a loss, with the layer before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradexplode.diagnose.graph import facts_of_loss

Rectifier = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two layers, the second of which is rectified."""

    def __init__(self, rectifier: Rectifier, bias: float) -> None:
        super().__init__()
        self.body, self.density, self.rectifier = nn.Linear(4, 8), nn.Linear(8, 1), rectifier
        nn.init.constant_(self.density.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a density."""
        return self.rectifier(self.density(functional.relu(self.body(x)))[..., 0] / 2)


RECTIFIERS: dict[str, tuple[Rectifier, str]] = {
    "a function": (functional.relu, "relu"),
    "a module": (nn.ReLU(), "relu"),
    "in place": (nn.ReLU(inplace=True), "relu"),
    "a lower limit": (lambda x: x.clamp(min=0), "clamp"),
    "two limits": (lambda x: x.clamp(-1, 2), "clamp"),
    "hard limits": (functional.hardtanh, "hardtanh"),
    "a sigmoid of straight lines": (functional.hardsigmoid, "hardsigmoid"),
    "a threshold": (lambda x: functional.threshold(x, 0.1, 0.0), "threshold"),
}


@pytest.mark.parametrize("name", RECTIFIERS)
@pytest.mark.parametrize(("bias", "is_found"), [(-50.0, True), (0.5, False)])
def test_the_last_rectifier_that_passes_nothing_on_is_named(name: str, bias: float, is_found: bool) -> None:
    """With the nearest parameter before it; one that passes on a part of its inputs is none."""
    torch.manual_seed(0)
    rectifier, operation = RECTIFIERS[name]
    net = Net(rectifier, bias)
    inactive = facts_of_loss(net(torch.randn(16, 4)).square().mean(), net).inactive
    assert inactive == ((operation, "density.bias") if is_found else None)


@pytest.mark.parametrize("operation", ["round", "sign", "floor"])
def test_a_step_function_passes_nothing_on_whatever_it_takes(operation: str) -> None:
    """Its derivative is zero everywhere; an estimator that passes the gradient straight through has another way."""
    net = Net(lambda x: getattr(torch, operation)(x), 0.5)
    assert facts_of_loss(net(torch.randn(16, 4)).square().mean(), net).inactive == (operation, "density.bias")
    straight = Net(lambda x: x + (getattr(torch, operation)(x) - x).detach(), 0.5)
    assert facts_of_loss(straight(torch.randn(16, 4)).square().mean(), straight).inactive is None


def test_a_result_that_was_overwritten_is_unknown() -> None:
    """Autograd refuses it; the loss is read without it."""
    net = Net(functional.relu, -50.0)
    density = net(torch.randn(16, 4))
    loss = (density * 2).mean()
    with torch.no_grad():
        density.add_(1.0)
    assert facts_of_loss(loss, net).inactive is None
