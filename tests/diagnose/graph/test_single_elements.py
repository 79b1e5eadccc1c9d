"""A softmax over one element is found in the graph of a loss, with the layer before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradexplode.diagnose.graph import facts_of_loss

LABELS = torch.zeros(16, dtype=torch.long)
CLASSES = torch.arange(16) % 3


@pytest.mark.parametrize(
    ("outputs", "loss", "operation"),
    [
        (1, lambda out: out.softmax(1).square().mean(), "softmax"),
        (1, lambda out: functional.cross_entropy(out, LABELS), "log_softmax"),
        (1, lambda out: functional.softmin(out, dim=-1).mean(), "softmax"),
        (1, lambda out: out.softmax(0).square().mean(), None),
        (3, lambda out: functional.cross_entropy(out, CLASSES), None),
        (1, lambda out: out.sigmoid().mean(), None),
    ],
    ids=["softmax", "cross-entropy of one class", "softmin", "over the batch", "three classes", "sigmoid"],
)
def test_a_softmax_over_one_element_is_named(
    outputs: int, loss: Callable[[Tensor], Tensor], operation: str | None
) -> None:
    """With the nearest parameter before it; one over several elements is none."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))
    found = facts_of_loss(loss(net(torch.randn(16, 4))), net).of_one_element
    assert (None if found is None else found[0]) == operation
    assert found is None or found[1].startswith("2.")
