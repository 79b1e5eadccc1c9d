"""Healthy runs of networks with a shape of their own: attention, normalisation, sparse gradients, variation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import AdamW

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, healthy
from benchmarks.scenarios.module import (
    Block,
    LanguageModel,
    Residual,
    ScenarioModule,
    Variational,
    adam,
    perceptron,
    sgd,
)


@healthy("language")
def transformer(seed: int) -> Setup:
    """A transformer on text by AdamW, with an everyday learning rate."""
    _, letters = text()
    body = nn.Sequential(*(Block(32) for _ in range(3)), nn.LayerNorm(32))
    module = ScenarioModule(LanguageModel(letters, 32, body), cross_entropy, partial(AdamW, lr=3e-3, weight_decay=0.1))
    return Setup(module, lines(200, 8, 16))


@healthy("convolution")
def normalised_convolutions(seed: int) -> Setup:
    """A convolutional network with batch normalisation, at a high learning rate."""
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.3, momentum=0.9)), drawn(digits(), 200, 32))


@healthy("language")
def rare_words(seed: int) -> Setup:
    """A bag of words with a large embedding, of which each step touches a few rows."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(2000, 16)
            self.head = nn.Linear(16, 5)

        def forward(self, words: Tensor) -> Tensor:
            scores: Tensor = self.head(self.embedding(words).mean(1))
            return scores

    words = (2000 * torch.rand(300, 8, 12) ** 4).long()
    topics = words.amin(2) % 5
    module = ScenarioModule(Bag(), cross_entropy, partial(torch.optim.Adagrad, lr=0.3))
    return Setup(module, list(zip(words, topics, strict=True)))


@healthy("classification")
def uneven_batches(seed: int) -> Setup:
    """Batches of between one and 128 rows, with a loss that is summed over them."""
    inputs, targets = diabetes(scaled=True)
    sizes = torch.randint(1, 129, (300,)).tolist()
    batches = [batch for size in sizes for batch in drawn((inputs, targets), 1, size)]

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(outputs, targets, reduction="sum")

    return Setup(ScenarioModule(nn.Linear(10, 1), summed, sgd(3e-4)), batches)


@healthy("variational")
def annealed_divergence(seed: int) -> Setup:
    """A variational autoencoder whose loss rises as its divergence term comes in."""
    network = nn.Sequential(perceptron([64, 32, 16]), perceptron([8, 32, 64]))
    batches = [
        (inputs, torch.tensor(min(1.0, max(0.0, (step - 100) / 150))))
        for step, (inputs, _) in enumerate(drawn(digits(), 300, 32))
    ]
    return Setup(Variational(network, mse_loss, adam(0.003)), batches)


@healthy("depth")
def deep_residual(seed: int) -> Setup:
    """A deep residual network with layer normalisation, by Adam."""

    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)))

    network = nn.Sequential(nn.Linear(64, 32), *(block() for _ in range(6)), nn.LayerNorm(32), nn.Linear(32, 10))
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003)), drawn(digits(), 200, 32))
