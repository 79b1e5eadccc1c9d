"""Results that autograd does not keep are computed again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradexplode.diagnose.graph.nodes import graph_of

Loss = Callable[[Tensor, str], Tensor]

TARGETS = torch.linspace(0, 1, 12).reshape(4, 3)
LABELS = torch.tensor([0, 2, -100, 1])
WEIGHTS = torch.tensor([0.2, 1.0, 3.0])

LOSSES: dict[str, Loss] = {
    "mse_loss": lambda x, way: functional.mse_loss(x, TARGETS, reduction=way),
    "huber_loss": lambda x, way: functional.huber_loss(x, TARGETS, reduction=way, delta=0.3),
    "smooth_l1_loss": lambda x, way: functional.smooth_l1_loss(x, TARGETS, reduction=way, beta=0.2),
    "binary_cross_entropy": lambda x, way: functional.binary_cross_entropy(
        x.sigmoid(), TARGETS, weight=WEIGHTS, reduction=way
    ),
    "binary_cross_entropy_with_logits": lambda x, way: functional.binary_cross_entropy_with_logits(
        x, TARGETS, pos_weight=WEIGHTS, reduction=way
    ),
    "cross_entropy": lambda x, way: functional.cross_entropy(x, LABELS, weight=WEIGHTS, reduction=way),
    "cross_entropy of images": lambda x, way: functional.cross_entropy(
        x.reshape(2, 2, 3).transpose(1, 2)[..., None], LABELS.reshape(2, 2, 1), reduction=way
    ),
}


@pytest.mark.parametrize("way", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_function_is_computed_again_from_its_inputs(name: str, way: str) -> None:
    """Also where the loss is divided afterwards, as for the accumulation of gradients."""
    torch.manual_seed(0)
    loss = LOSSES[name](torch.randn(4, 3, requires_grad=True), way)
    graph = graph_of(loss / 4)
    assert graph is not None
    for node in graph.nodes:
        graph.compute(node)
    torch.testing.assert_close(graph.values[loss.grad_fn, 0], loss.detach())
