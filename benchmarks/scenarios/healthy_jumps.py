"""Healthy runs whose losses or gradients jump by orders of magnitude, and come back."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Optimizer

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, spoilt
from benchmarks.scenarios.family import Setup, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, scale_weights, set_frozen, sgd


@healthy("curvature")
def catapult(seed: int) -> Setup:
    """Full-batch descent at a rate just above what the first curvature allows: the loss rises, then falls for good."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(10, 512, bias=False)
            self.last = nn.Linear(512, 1, bias=False)
            nn.init.normal_(self.first.weight, std=0.3)
            nn.init.normal_(self.last.weight, std=0.04)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.first(inputs))
            return outputs

    module = ScenarioModule(Wide(), mse_loss, sgd(0.0051))
    return Setup(module, [diabetes(scaled=True)] * 300)


@healthy("bad batches")
def wild_batches_by_adam(seed: int) -> Setup:
    """Two batches ten thousand times too large, of which Adam makes steps like any other."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs.mul_(1e4)

    batches = spoilt(spoilt(drawn(diabetes(scaled=True), 300, 32), 60, spoil), 180, spoil)
    return Setup(ScenarioModule(perceptron([10, 32, 1], nn.Tanh), mse_loss, adam(0.001, betas=(0.5, 0.999))), batches)


@healthy("regression")
def wild_targets_clipped(seed: int) -> Setup:
    """A regression whose noise has hardly a mean (Student's t, 1.5 degrees of freedom), kept in order by clipping."""
    inputs = torch.randn(300, 16, 10)
    noise = torch.distributions.StudentT(1.5).sample((300, 16, 1))
    targets = inputs @ torch.randn(10, 1) + noise
    module = ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.01))
    return Setup(module, list(zip(inputs, targets, strict=True)), {"gradient_clip_val": 1.0})


@healthy("regression")
def alternating_tasks(seed: int) -> Setup:
    """Batches of two tasks in turn, drawn at random, with losses a hundred times apart."""
    inputs, targets = diabetes(scaled=True)
    small, large = drawn((inputs, 0.3 * targets), 300, 32), drawn((inputs, 3 * targets), 300, 32)
    coins = (torch.rand(300) < 0.5).tolist()
    batches = [one if coin else other for coin, one, other in zip(coins, small, large, strict=True)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01)), batches)


@healthy("depth")
def slow_start_of_adam(seed: int) -> Setup:
    """A deep network whose weights begin small: the gradients grow ten-thousandfold before anything is learned."""
    network = perceptron([64, *[64] * 5, 10], nn.Tanh)
    scale_weights(network, 0.4)
    return Setup(ScenarioModule(network, cross_entropy, adam(0.001)), drawn(digits(), 300, 32))


@healthy("classification")
def new_task_after_overfitting(seed: int) -> Setup:
    """A few rows are learned by heart until the gradients are next to nothing; then others come."""
    inputs, labels = digits()
    batches = drawn((inputs[:16], labels[:16]), 200, 16) + drawn((inputs, (labels + 5) % 10), 200, 16)
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.003)), batches)


@healthy("classification")
def head_from_next_to_nothing(seed: int) -> Setup:
    """Only a new last layer is trained, whose weights begin next to zero and grow two-hundredfold."""
    network = perceptron([64, 64, 10])
    scale_weights(network[2], 1e-3)

    def optimizer(parameters: Any) -> Optimizer:
        return SGD(network[2].parameters(), lr=0.5)

    module = ScenarioModule(network, cross_entropy, optimizer, events={0: partial(set_frozen, frozen=True)})
    return Setup(module, drawn(digits(), 300, 32))


@healthy("schedule")
def harder_data(seed: int) -> Setup:
    """From step 150 on the targets are larger and shifted; the loss jumps above its start and comes down."""
    inputs, targets = diabetes(scaled=True)
    batches: list[Batch] = drawn((inputs, targets), 150, 64) + drawn((inputs, 1.5 * targets + 2.5), 250, 64)
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.03)), batches)


@healthy("classification")
def mostly_zero_loss(seed: int) -> Setup:
    """A hinge loss, which is exactly zero at most steps once the classes are apart, and so are the gradients."""

    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        sign = 2.0 * (targets == 0) - 1
        return (1 - sign * outputs[:, 0]).clamp(min=0).mean()

    return Setup(ScenarioModule(perceptron([64, 32, 1]), hinge, sgd(0.3)), drawn(digits(), 400, 8))


@healthy("curvature")
def newton_like(seed: int) -> Setup:
    """L-BFGS, which evaluates the loss several times a step and moves the weights far at the first ones."""

    def optimizer(parameters: Any) -> Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4)

    data = diabetes(scaled=True)
    return Setup(ScenarioModule(nn.Linear(10, 1), mse_loss, optimizer), [data] * 100)


@healthy("schedule")
def sharp_cycles(seed: int) -> Setup:
    """A learning rate that swings by a factor of a hundred every twenty steps, with Adam."""
    module = ScenarioModule(
        perceptron([64, 64, 10]), cross_entropy, adam(0.02), lambda step: 0.01 if step % 20 < 10 else 1.0
    )
    return Setup(module, drawn(digits(), 300, 32))
