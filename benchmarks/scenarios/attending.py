"""Transformers at their limits, and small batches of segmented or rare things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, scaled_dot_product_attention

from benchmarks.scenarios.data import digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, perceptron, scale_weights, sgd


class Recall(nn.Module):
    """Attention over a memory of learned keys and values, whose logits have no bound."""

    def __init__(self, width: int, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, letters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of the next letter at each place."""
        hidden = self.embedding(inputs)
        attended = scaled_dot_product_attention(
            self.query(hidden), self.key(hidden), self.value(hidden), is_causal=True, scale=1.0
        )
        logits: Tensor = self.head(hidden + attended)
        return logits.flatten(0, 1)


def _blocks(count: int, normalised: bool = True) -> LanguageModel:
    return LanguageModel(text()[1], 32, nn.Sequential(*(Block(32, normalised) for _ in range(count))))


@healthy("attention")
def attention(seed: int) -> Setup:
    """Logits without scaling, by Adam."""
    return Setup(ScenarioModule(Recall(32, text()[1]), cross_entropy, adam(0.003)), lines(150, 8, 16))


@healthy("attention")
def one_line_a_step(seed: int) -> Setup:
    """A transformer on one line of text a step."""
    return Setup(ScenarioModule(_blocks(2), cross_entropy, adam(0.003)), lines(250, 1, 16))


@healthy("attention")
def residuals_of_zero(seed: int) -> Setup:
    """Each block's last layers start at zero, so that most gradients are zero at the first step."""
    network = _blocks(2)
    assert isinstance(network.body, nn.Sequential)
    for block in network.body:
        scale_weights(block.get_submodule("out"), 0.0)
        scale_weights(block.get_submodule("feed.2"), 0.0)
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003)), lines(150, 8, 16))


@exploding("attention")
def attention_rate_rises(seed: int) -> Setup:
    """Logits without scaling, with a learning rate that rises by four percent a step."""
    module = ScenarioModule(Recall(32, text()[1]), cross_entropy, sgd(0.3), lambda step: 1.04**step)
    return Setup(module, lines(250, 8, 16))


@exploding("attention")
def blocks_rate_rises(seed: int) -> Setup:
    """Two blocks without normalisation by Adam, whose learning rate rises by five percent a step."""
    module = ScenarioModule(_blocks(2, normalised=False), cross_entropy, adam(0.001), lambda step: 1.05**step)
    return Setup(module, lines(250, 8, 16))


@exploding("attention")
def head_rate_too_high(seed: int) -> Setup:
    """A transformer by gradient descent with a learning rate of one hundred."""
    return Setup(ScenarioModule(_blocks(2), cross_entropy, sgd(100.0)), lines(120, 8, 16))


def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one minus Dice's coefficient of bright pixels."""
    found = outputs.sigmoid()
    return 1 - (2 * (found * targets).sum() + 1e-3) / (found.sum() + targets.sum() + 1e-3)


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of bright pixels, which counts hard ones more (Lin et al. 2017)."""
    error = binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return ((1 - (-error).exp()).square() * error).mean()


def _masks(criterion: Callable[[Tensor, Tensor], Tensor], size: int, optimizer: Any, steps: int = 250) -> Setup:
    batches = [
        (inputs + 0.3 * torch.randn_like(inputs), (inputs > 0.8).float()) for inputs, _ in drawn(digits(), steps, size)
    ]
    return Setup(ScenarioModule(perceptron([64, 64, 64]), criterion, optimizer), batches)


@healthy("segmentation")
def overlaps(seed: int) -> Setup:
    """Dice's loss, two images a step."""
    return _masks(overlap, 2, adam(0.003))


@healthy("segmentation")
def focal_pixels(seed: int) -> Setup:
    """A focal loss, which becomes next to nothing."""
    return _masks(focal, 4, adam(0.003))


@healthy("segmentation")
def focal_by_descent(seed: int) -> Setup:
    """The same by gradient descent, one image a step."""
    return _masks(focal, 1, sgd(1.0, momentum=0.9), 300)


@exploding("segmentation")
def focal_rate_too_high(seed: int) -> Setup:
    """The same with a learning rate a thousand times too high."""
    return _masks(focal, 4, sgd(3000.0), 200)
