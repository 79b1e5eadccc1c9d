"""A small loop of plain PyTorch, with exact gradient norms that the monitor did not compute."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode import GradientWatch


def network(seed: int = 0) -> nn.Sequential:
    """Return a small perceptron."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(count: int, seed: int = 1) -> list[Tensor]:
    """Return batches of 16 rows."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 4, generator=generator) for _ in range(count)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean squared error of a sum."""
    error: Tensor = model(batch) - batch.sum(1, keepdim=True)
    return error.square().mean()


def exact_norm(parameters: Iterable[Tensor], scale: float = 1.0) -> float:
    """Return the L2 norm of all gradients in float64, divided by the scale of a gradient scaler."""
    flat = [one.grad.detach().double().flatten() for one in parameters if one.grad is not None]
    return float(torch.cat(flat).norm()) / scale


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same weights, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def recorded(watch: GradientWatch) -> float:
    """Return the norm that was recorded of the last step."""
    assert not watch.failed
    assert watch.last is not None
    assert watch.last.grad_norm is not None
    return watch.last.grad_norm


def train_step(watch: GradientWatch, model: nn.Module, optimizer: Optimizer, batch: Tensor) -> float:
    """Train on one batch, and return the exact norm of its gradients, before the optimizer's step."""
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    watch.loss(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = exact_norm(model.parameters())
    optimizer.step()
    return norm


def train_until_stopped(watch: GradientWatch, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    """Train for a number of steps, or until the watch stops the training."""
    for batch in batches(steps):
        if watch.should_stop:
            return
        train_step(watch, model, optimizer, batch)
