"""Healthy runs whose losses, gradients or weights lie at unusual levels, or move far in a good cause."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, scale_weights, sgd


@healthy("regression")
def summed_loss(seed: int) -> Setup:
    """The loss is a sum over many rows, so that gradient norms are in the ten thousands."""

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return 50 * mse_loss(outputs, targets, reduction="sum")

    module = ScenarioModule(perceptron([10, 32, 1]), summed, sgd(2e-6, momentum=0.9))
    return Setup(module, drawn(diabetes(scaled=True), 300, 256))


@healthy("regression")
def huge_targets(seed: int) -> Setup:
    """Targets in the millions, with Adam."""
    inputs, targets = diabetes(scaled=True)
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, adam(0.01))
    return Setup(module, drawn((inputs, 1e6 * targets), 250, 64))


@healthy("regression")
def tiny_loss(seed: int) -> Setup:
    """A loss of 1e-8, with a learning rate to match."""

    def tiny(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e-8 * mse_loss(outputs, targets)

    return Setup(ScenarioModule(perceptron([10, 32, 1]), tiny, sgd(5e6)), drawn(diabetes(scaled=True), 300, 64))


@healthy("regression")
def converged(seed: int) -> Setup:
    """A regression without noise that is solved exactly: gradients fall to the last bits of their numbers."""
    inputs = torch.randn(300, 64, 10)
    targets = inputs @ torch.randn(10, 1)
    return Setup(ScenarioModule(nn.Linear(10, 1), mse_loss, sgd(0.2)), list(zip(inputs, targets, strict=True)))


@healthy("classification")
def overfitting(seed: int) -> Setup:
    """Sixteen rows are learned by heart, until the loss is next to nothing."""
    inputs, labels = digits()
    few = inputs[:16], labels[:16]
    return Setup(ScenarioModule(perceptron([64, 128, 10]), cross_entropy, adam(0.01)), drawn(few, 300, 8))


@healthy("classification")
def hard_example_after_calm(seed: int) -> Setup:
    """After long calm on easy rows, one batch that was never seen before, every sixty steps."""
    inputs, labels = digits()
    easy = labels < 2
    batches = drawn((inputs[easy], labels[easy]), 300, 16)
    for step, batch in zip(range(60, 300, 60), drawn((inputs[~easy], labels[~easy]), 4, 4), strict=True):
        batches[step] = batch
    return Setup(ScenarioModule(perceptron([64, 32, 10]), cross_entropy, sgd(0.05)), batches)


@healthy("depth")
def vanishing(seed: int) -> Setup:
    """A deep network with sigmoid units, whose gradients vanish: no explosion, but nothing is learned."""
    network = perceptron([64, *[32] * 10, 10], nn.Sigmoid)
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.05)), drawn(digits(), 200, 32))


@healthy("classification")
def bad_start(seed: int) -> Setup:
    """The last layer's weights begin far too large: the loss starts at a hundred times of where it ends."""
    network = perceptron([64, 64, 10])
    scale_weights(network[2], 60.0)
    return Setup(ScenarioModule(network, cross_entropy, adam(0.01)), drawn(digits(), 300, 32))


@healthy("regression")
def likelihood_below_zero(seed: int) -> Setup:
    """A Gaussian likelihood with a learned deviation: the loss falls through zero and far below it."""

    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_deviation = outputs.chunk(2, dim=1)
        return (log_deviation + 0.5 * ((targets - mean) * (-log_deviation).exp()).square()).mean()

    inputs = torch.randn(300, 64, 4)
    targets = (inputs @ torch.randn(4, 1)) * 0.5 + 0.02 * torch.randn(300, 64, 1)
    batches = list(zip(inputs, targets, strict=True))
    return Setup(ScenarioModule(perceptron([4, 32, 2], nn.Tanh), likelihood, adam(0.003)), batches)


@healthy("classification")
def weights_grow_well(seed: int) -> Setup:
    """Weights begin tiny and grow tenfold, as the task wants them."""
    network = perceptron([64, 64, 10])
    scale_weights(network, 0.25)
    return Setup(ScenarioModule(network, cross_entropy, adam(0.02)), drawn(digits(), 300, 32))


@healthy("depth")
def plateau_then_fall(seed: int) -> Setup:
    """A deep network sits on a plateau with small gradients, and leaves it with gradients that grow a hundredfold."""
    network = perceptron([64, 32, 32, 32, 10], nn.Tanh)
    scale_weights(network, 0.15)
    return Setup(ScenarioModule(network, cross_entropy, sgd(1.0)), drawn(digits(), 400, 64))
