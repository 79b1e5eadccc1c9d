"""The weights that a forward pass multiplies by, read from the graph of its loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.graph.applied import REPEATED, applied_weights
from lightning_gradexplode.diagnose.graph.nodes import graph_of
from lightning_gradexplode.records import AppliedWeight


def applied(loss: Tensor, module: nn.Module) -> dict[str, AppliedWeight]:
    """Return what the graph of a loss shows, by parameter."""
    graph = graph_of(loss)
    assert graph is not None
    found = applied_weights(graph, {id(one): name for name, one in module.named_parameters()})
    return {one.name: one for one in found}


class Weights(nn.Module):
    """Parameters of a module's own, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(2 * torch.linalg.qr(torch.randn(4, 4))[0])
        self.factor = nn.Parameter(torch.full((4,), 2.0))
        self.cell = nn.Linear(4, 4, bias=False)
        self.cell.weight.data = self.matrix.data.clone()


@pytest.mark.parametrize("how", ["matrix", "left", "factor", "cell", "residual"])
def test_uses_in_turn_are_counted_and_their_growth_is_measured(how: str) -> None:
    """Twelve products with a weight that doubles the norm are twelve calls, between which it grows by 2 ** 11."""
    module, state = Weights(), torch.randn(5, 4)
    for _ in range(12):
        if how == "matrix":
            state = state @ module.matrix
        elif how == "left":
            state = (module.matrix @ state.t()).t()
        elif how == "factor":
            state = state * module.factor
        elif how == "cell":
            state = module.cell(state)
        else:
            state = state + state * module.factor / 2
    name = {"left": "matrix", "cell": "cell.weight", "residual": "factor"}.get(how, how)
    found = applied(state.sum(), module)[name]
    assert found.calls == 12
    assert found.rms is not None
    assert found.first_rms is not None
    assert found.rms / found.first_rms == pytest.approx(2.0**11, rel=1e-4)


def test_uses_side_by_side_are_one_call() -> None:
    """A layer that is applied to twelve time steps by itself does not compound."""
    module = Weights()
    loss = sum((module.cell(torch.randn(5, 4)).square().sum() for _ in range(12)), torch.zeros(()))
    assert applied(loss, module)["cell.weight"].calls == 1


def test_few_uses_are_counted_as_they_are() -> None:
    """Below eight uses it is not looked whether they follow one another."""
    module = Weights()
    loss = sum((module.cell(torch.randn(5, 4)).sum() for _ in range(REPEATED - 1)), torch.zeros(()))
    assert applied(loss, module)["cell.weight"].calls == REPEATED - 1


def test_the_last_finite_size_counts() -> None:
    """Where the state overflows, its growth is that up to the last finite value."""
    module, state = Weights(), torch.full((5, 4), 1e30)
    for _ in range(60):
        state = state * module.factor
    found = applied(state.sum(), module)["factor"]
    assert found.calls == 60
    assert found.rms is not None
    assert 1e37 < found.rms < 3.5e38


def test_weights_are_listed_in_the_order_of_their_first_use() -> None:
    """What is registered last may be used first."""
    module = Weights()
    state = module.cell(torch.randn(5, 4)) * module.factor @ module.matrix
    assert list(applied(state.sum(), module)) == ["cell.weight", "factor", "matrix"]


def test_a_product_with_a_number_within_torch_func_is_no_weight() -> None:
    """There the graph of a gradient has products with one argument, as in an inner step of meta-learning."""
    module = Weights()
    gradient, _ = torch.func.grad_and_value(lambda matrix: (3.0 * (matrix @ torch.randn(4))).square().sum())(
        module.matrix
    )
    found = applied((torch.randn(2, 4) @ (module.matrix - 0.1 * gradient)).sum() + module.factor.sum(), module)
    assert "factor" not in found
