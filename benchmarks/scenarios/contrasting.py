"""Embeddings by contrast: temperatures, margins, and losses that push apart without a bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from benchmarks.scenarios.data import digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Contrast(ScenarioModule):
    """Two noisy views of each digit, to be found among the batch's others.

    Args:
        optimizer: Builds the optimizer.
        scale: Logarithm of the inverse temperature at the start, which is learned.
        most: Its largest value.
        unit: Whether embeddings are brought to length one.
    """

    def __init__(self, optimizer: MakeOptimizer, scale: float = 2.6, most: float = 4.6, unit: bool = True) -> None:
        super().__init__(perceptron([64, 64, 16]), mse_loss, optimizer)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.most, self.unit = most, unit

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy of finding the other view, both ways."""
        inputs, _ = batch
        one, other = (self.network(inputs + 0.1 * torch.randn_like(inputs)) for _ in range(2))
        if self.unit:
            one, other = normalize(one, dim=1), normalize(other, dim=1)
        logits = self.scale.clamp(max=self.most).exp() * one @ other.T
        right = torch.arange(len(inputs))
        return 0.5 * (cross_entropy(logits, right) + cross_entropy(logits.T, right))


@healthy("contrast")
def contrast(seed: int) -> Setup:
    """A learned temperature with a bound."""
    return Setup(Contrast(adam(0.003)), drawn(digits(), 250, 32))


@healthy("contrast")
def contrast_small_batches(seed: int) -> Setup:
    """Four images a step: the loss is often next to nothing."""
    return Setup(Contrast(adam(0.003)), drawn(digits(), 300, 4))


@healthy("contrast")
def contrast_without_length(seed: int) -> Setup:
    """Products of embeddings of any length, at a small learning rate."""
    return Setup(Contrast(adam(0.001), scale=0.0, unit=False), drawn(digits(), 250, 32))


@exploding("contrast")
def temperature_runs_away(seed: int) -> Setup:
    """The inverse temperature is learned without a bound, on views of which a third show another image."""

    class Unbounded(Contrast):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            inputs, _ = batch
            one, other = normalize(self.network(inputs), dim=1), normalize(self.network(inputs.roll(1, 0)), dim=1)
            right = torch.where(
                torch.rand(len(inputs)) < 1 / 3,
                torch.randint(len(inputs), (len(inputs),)),
                torch.arange(len(inputs)).roll(1),
            )
            return cross_entropy(self.scale.exp() * one @ other.T, right)

    module = Unbounded(sgd(0.3), most=100.0)
    module.schedule = lambda step: 1.04**step
    return Setup(module, drawn(digits(), 300, 32))


@exploding("contrast")
def contrast_of_any_length(seed: int) -> Setup:
    """Products of embeddings of any length over a temperature of 0.07, by gradient descent."""
    return Setup(Contrast(sgd(10.0), unit=False), drawn(digits(), 200, 32))


class Triplets(ScenarioModule):
    """Embeddings in which a digit is closer to its own kind than to another, with a margin or without."""

    def __init__(self, optimizer: MakeOptimizer, margin: float | None) -> None:
        super().__init__(perceptron([64, 32, 8]), mse_loss, optimizer)
        self.margin = margin

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of distances within and between the classes of neighbours in the batch."""
        inputs, labels = batch
        points = self.network(inputs)
        distances = (points[:, None] - points[None]).square().sum(2)
        same = labels[:, None] == labels[None]
        near, far = distances[same].mean(), distances[~same].mean()
        return near - far if self.margin is None else (near - far + self.margin).relu()  # type: ignore[no-any-return]


@healthy("contrast")
def triplets(seed: int) -> Setup:
    """A margin, so that loss and gradients are zero once it is kept."""
    return Setup(Triplets(adam(0.003), 1.0), drawn(digits(), 250, 32))


@exploding("contrast")
def triplets_without_margin(seed: int) -> Setup:
    """No margin: distances grow for ever, and the loss falls without a floor."""
    return Setup(Triplets(sgd(0.01), None), drawn(digits(), 300, 32))


@exploding("contrast")
def triplets_without_margin_by_adam(seed: int) -> Setup:
    """The same by Adam, which makes it slow."""
    return Setup(Triplets(adam(0.1), None), drawn(digits(), 400, 32))
