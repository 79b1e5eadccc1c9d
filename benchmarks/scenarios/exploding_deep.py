"""Runs that explode through depth: gains above one, layer after layer, and single layers that are wrong."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Optimizer

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, ring, text
from benchmarks.scenarios.family import Setup, exploding
from benchmarks.scenarios.module import (
    Adversaries,
    Block,
    LanguageModel,
    Residual,
    ScenarioModule,
    adam,
    perceptron,
    scale_weights,
    sgd,
)


@exploding("depth")
def deep_tanh_large_weights(seed: int) -> Setup:
    """A deep perceptron with tanh units and large initial weights, as in the article."""
    network = perceptron([64, *[32] * 10, 10], nn.Tanh, gain=2.0)
    return Setup(ScenarioModule(network, cross_entropy, sgd(3.0)), drawn(digits(), 200, 32))


@exploding("depth")
def deep_without_normalisation(seed: int) -> Setup:
    """A deep perceptron with rectified units, no normalisation, and initial weights a tenth larger than usual."""
    network = perceptron([10, *[32] * 25, 1], nn.ReLU, gain=1.1 * 2**0.5)
    return Setup(ScenarioModule(network, mse_loss, sgd(0.003)), drawn(diabetes(scaled=True), 200, 32))


@exploding("depth", where="network.5")
def one_block_too_loud(seed: int) -> Setup:
    """A residual network without normalisation, in which one block's weights begin ten times too large."""
    blocks = [Residual(perceptron([32, 32, 32])) for _ in range(10)]
    network = nn.Sequential(nn.Linear(64, 32), *blocks, nn.Linear(32, 10))
    scale_weights(blocks[4], 10.0)
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.02)), drawn(digits(), 200, 32))


@exploding("convolution", where="network.3")
def one_convolution_too_loud(seed: int) -> Setup:
    """A convolutional network in which the second layer's weights begin fifty times too large."""
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    scale_weights(network[3], 50.0)
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.5, momentum=0.9)), drawn(digits(), 200, 32))


@exploding("language")
def transformer_without_warmup(seed: int) -> Setup:
    """A transformer without normalisation on text, by Adam at a high learning rate from the first step on."""
    _, letters = text()
    body = nn.Sequential(*(Block(32, normalised=False) for _ in range(3)))
    module = ScenarioModule(LanguageModel(letters, 32, body), cross_entropy, adam(0.1))
    return Setup(module, lines(150, 8, 32))


@exploding("classification", where="network.4")
def one_layer_too_fast(seed: int) -> Setup:
    """A perceptron whose last layer was given a learning rate a thousand times that of the others."""
    network = perceptron([10, 32, 32, 1])

    def optimizer(parameters: Any) -> Optimizer:
        slow, fast = [*network[:4].parameters()], [*network[4].parameters()]
        return SGD([{"params": slow, "lr": 0.003}, {"params": fast, "lr": 3.0}])

    return Setup(ScenarioModule(network, mse_loss, optimizer), drawn(diabetes(scaled=True), 200, 32))


@exploding("adversarial", where="network")
def critic_without_limit(seed: int) -> Setup:
    """An adversarial pair whose critic has neither a penalty nor clipped weights, so that its score grows for ever."""
    return Setup(Adversaries(0.05, 0.005, limited=False), ring(300, 64))
