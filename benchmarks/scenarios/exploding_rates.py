"""Runs that explode because steps are too large: the learning rate, its schedule, or the sign of what is added."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Optimizer

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, set_frozen, sgd


@exploding("classification")
def digits_rate_too_high(seed: int) -> Setup:
    """A perceptron on scanned digits, by plain gradient descent with a learning rate far too high."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(20.0))
    return Setup(module, drawn(digits(), 200, 32))


@exploding("convolution")
def convolutions_momentum(seed: int) -> Setup:
    """A convolutional network without normalisation on scanned digits, with momentum 0.99."""
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )
    module = ScenarioModule(network, cross_entropy, sgd(0.5, momentum=0.99))
    return Setup(module, drawn(digits(), 200, 32))


@exploding("classification")
def adam_rate_above_one(seed: int) -> Setup:
    """A perceptron on scanned digits, by Adam with a learning rate of 3."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, adam(3.0))
    return Setup(module, drawn(digits(), 200, 32))


@exploding("schedule")
def rate_rises_for_ever(seed: int) -> Setup:
    """A schedule that was meant to warm up and never ends: the learning rate rises by five percent a step."""
    module = ScenarioModule(perceptron([64, 64, 10], nn.Tanh), mean_square_of_class, sgd(0.01), lambda step: 1.05**step)
    return Setup(module, drawn(digits(), 400, 32))


@exploding("schedule", begins=200)
def rate_jumps_late(seed: int) -> Setup:
    """A schedule with a misplaced decimal point: after 200 good steps the learning rate is a thousand times higher."""
    module = ScenarioModule(
        perceptron([10, 32, 32, 1]), mse_loss, sgd(0.02), lambda step: 1000.0 if step >= 200 else 1.0
    )
    return Setup(module, drawn(diabetes(scaled=True), 260, 64))


@exploding("schedule", begins=150)
def rate_restart_too_high(seed: int) -> Setup:
    """Training goes on from a good state with three times the learning rate that the curvature allows."""
    module = ScenarioModule(perceptron([10, 1]), mse_loss, sgd(0.1), lambda step: 10.0 if step >= 150 else 1.0)
    return Setup(module, drawn(diabetes(scaled=True), 400, 128))


@exploding("regression")
def raw_targets(seed: int) -> Setup:
    """A regression on raw measurements and raw targets, by gradient descent with an everyday learning rate."""
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(1e-4))
    return Setup(module, drawn(diabetes(), 200, 32))


@exploding("curvature")
def just_above_the_limit(seed: int) -> Setup:
    """A linear regression on all data, with a learning rate one percent above what the curvature allows."""
    inputs, targets = diabetes(scaled=True)
    with_one = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    curvature = float(torch.linalg.eigvalsh(2 * with_one.T @ with_one / len(inputs))[-1])
    network = nn.Linear(10, 1)
    module = ScenarioModule(network, mse_loss, sgd(2.02 / curvature))
    return Setup(module, [(inputs, targets)] * 400)


@exploding("no floor")
def penalty_with_wrong_sign(seed: int) -> Setup:
    """A weight penalty that is subtracted in place of added, so that the weights grow by themselves."""
    network = perceptron([64, 32, 10])

    def rewarding(outputs: Tensor, targets: Tensor) -> Tensor:
        size = sum(parameter.square().sum() for parameter in network.parameters())
        return cross_entropy(outputs, targets) - 0.1 * size

    return Setup(ScenarioModule(network, rewarding, sgd(0.2)), drawn(digits(), 400, 32))


@exploding("no floor")
def loss_falls_for_ever(seed: int) -> Setup:
    """A loss with a sign turned: the error is made as large as possible, and the loss falls without a floor."""

    def turned(outputs: Tensor, targets: Tensor) -> Tensor:
        return -mse_loss(outputs, targets)

    module = ScenarioModule(perceptron([10, 32, 1], nn.Tanh), turned, adam(0.2))
    return Setup(module, drawn(diabetes(scaled=True), 400, 64))


@exploding("curvature")
def deep_linear_momentum(seed: int) -> Setup:
    """A deep linear network, whose curvature grows as it learns, with momentum."""
    network = nn.Sequential(*(nn.Linear(10, 10) for _ in range(5)), nn.Linear(10, 1))
    module = ScenarioModule(network, mse_loss, sgd(0.2, momentum=0.95))
    return Setup(module, drawn(diabetes(scaled=True), 300, 64))


@exploding("classification")
def accumulated_too_high(seed: int) -> Setup:
    """Gradients are accumulated over four batches, and the learning rate was raised with them too far."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(1.0))
    return Setup(module, drawn(diabetes(scaled=True), 600, 16), {"accumulate_grad_batches": 4})


@exploding("curvature")
def critical_momentum(seed: int) -> Setup:
    """Momentum and learning rate that are each fine alone, in bfloat16: the swings of the loss get wider and wider."""
    module = ScenarioModule(perceptron([10, 32, 1], nn.Tanh), mse_loss, sgd(0.3, momentum=0.9))
    return Setup(module, drawn(diabetes(scaled=True), 200, 64), {"precision": "bf16-mixed"})


@exploding("schedule", begins=100)
def unfreezing_too_fast(seed: int) -> Setup:
    """The first layers are unfrozen at step 100 with a learning rate that was meant for the last one's beginning."""
    network = perceptron([10, 32, 32, 1])

    def optimizer(parameters: Any) -> Optimizer:
        early, late = [*network[:4].parameters()], [*network[4].parameters()]
        return SGD([{"params": early, "lr": 5.0}, {"params": late, "lr": 0.02}])

    events = {0: partial(set_frozen, frozen=True), 100: partial(set_frozen, frozen=False)}
    module = ScenarioModule(network, mse_loss, optimizer, events=events)
    return Setup(module, drawn(diabetes(scaled=True), 160, 32))


def mean_square_of_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of outputs against a one for the class and zeros for the others."""
    return mse_loss(outputs, nn.functional.one_hot(targets, outputs.shape[1]).float())
