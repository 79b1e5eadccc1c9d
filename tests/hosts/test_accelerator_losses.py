"""The losses that an Accelerator gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate")

import accelerate

from lightning_gradexplode.hosts.accelerator_losses import AcceleratorLosses


class Kept:
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def add(self, loss: Tensor) -> None:
        """Keep one."""
        self.losses.append(float(loss.detach()))


def prepared() -> tuple[Any, Any, Any]:
    """Return an Accelerator, and a model and an optimizer that it has prepared."""
    model = nn.Linear(2, 1)
    accelerator = accelerate.Accelerator(cpu=True)
    return accelerator, *accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_losses_of_one_optimizer_are_given_and_gradients_are_as_before() -> None:
    """Another Accelerator trains at the same time."""
    (one, model, optimizer), (other, second, _) = prepared(), prepared()
    original, kept = accelerate.Accelerator.backward, Kept()
    losses = AcceleratorLosses(optimizer, kept.add)
    one.backward(3 * model(torch.ones(1, 2)).sum())
    other.backward(second(torch.ones(1, 2)).sum())
    assert kept.losses == pytest.approx([3 * model(torch.ones(1, 2)).item()])
    assert torch.equal(model.weight.grad, torch.full((1, 2), 3.0))
    assert torch.equal(second.weight.grad, torch.ones(1, 2))
    losses.close()
    assert accelerate.Accelerator.backward is original


def test_an_object_that_is_gone_gets_nothing_and_the_method_is_put_back() -> None:
    """The training has failed, which the Trainer tells no callback."""
    accelerator, model, optimizer = prepared()
    original, kept = accelerate.Accelerator.backward, Kept()
    AcceleratorLosses(optimizer, kept.add)
    del kept
    accelerator.backward(model(torch.ones(1, 2)).sum())
    assert accelerate.Accelerator.backward is original


def test_a_later_replacement_of_another_program_stays() -> None:
    """It calls ours, which then only calls the original."""
    accelerator, model, optimizer = prepared()
    original, kept = accelerate.Accelerator.backward, Kept()
    losses = AcceleratorLosses(optimizer, kept.add)
    ours = accelerate.Accelerator.backward

    def theirs(*arguments: Any, **options: Any) -> None:
        ours(*arguments, **options)

    accelerate.Accelerator.backward = theirs
    try:
        losses.close()
        assert accelerate.Accelerator.backward is theirs
        accelerator.backward(model(torch.ones(1, 2)).sum())
        assert kept.losses == []
    finally:
        accelerate.Accelerator.backward = original
