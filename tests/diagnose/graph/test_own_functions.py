"""Functions of the user's own in the graph of a loss, and what they multiply the gradient by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode.diagnose.graph.nodes import graph_of
from lightning_gradexplode.diagnose.graph.own_functions import OwnFunctions
from lightning_gradexplode.records import OwnFunction


class Times(torch.autograd.Function):
    """Returns its input; its backward pass multiplies the gradient."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.factor * gradients[0], None


class Rounded(torch.autograd.Function):
    """Rounds, and returns the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Limited(Times):
    """Returns its input, and limits the gradient."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].clamp(-1e-3, 1e-3), None


def loss_with(how: str) -> Tensor:
    """Return the loss of a small network with a function in its middle."""
    torch.manual_seed(0)
    body, head, other = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1), nn.Linear(8, 1)
    hidden = body(torch.randn(16, 4))
    changed: dict[str, Callable[[], Any]] = {
        "reversed": lambda: Times.apply(hidden, -30.0),  # type: ignore[no-untyped-call]
        "multiplied": lambda: Times.apply(hidden, 1000.0),  # type: ignore[no-untyped-call]
        "limited": lambda: Limited.apply(hidden, 1.0),  # type: ignore[no-untyped-call]
        "rounded": lambda: Rounded.apply(hidden),  # type: ignore[no-untyped-call]
        "checkpoint": lambda: checkpoint(nn.Tanh(), hidden, use_reentrant=True),
    }
    loss: Tensor = head(changed[how]()).square().mean()
    return loss + other(hidden).square().mean() if how == "reversed" else loss


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("multiplied", [OwnFunction("Times", 1000.0, True)]),
        ("reversed", [OwnFunction("Times", -30.0, False)]),
        ("limited", [OwnFunction("Limited")]),
        ("rounded", [OwnFunction("Rounded")]),
        ("checkpoint", []),
    ],
)
def test_the_factor_of_a_function_that_changes_no_value_is_measured(how: str, expected: list[OwnFunction]) -> None:
    """Those that change values or do not multiply by one number are only named, those of torch are not."""
    loss = loss_with(how)
    graph = graph_of(loss)
    assert graph is not None
    functions = OwnFunctions(graph)
    loss.backward()  # type: ignore[no-untyped-call]
    rounded = [replace(one, factor=one.factor and round(one.factor, 2)) for one in functions.found]
    assert rounded == expected


def test_a_factor_that_cannot_be_measured_does_not_end_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is named without one."""

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("lightning_gradexplode.diagnose.graph.own_functions._factor", fail)
    loss = loss_with("multiplied")
    graph = graph_of(loss)
    assert graph is not None
    functions = OwnFunctions(graph)
    loss.backward()  # type: ignore[no-untyped-call]
    assert functions.found == (OwnFunction("Times"),)
