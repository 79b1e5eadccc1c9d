"""Runs that are lost to numbers: bad data, functions at their poles, small number formats, accidents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, spoilt
from benchmarks.scenarios.family import Setup, exploding, half_precision
from benchmarks.scenarios.module import ScenarioModule, Variational, adam, perceptron, sgd


@exploding("bad batches", begins=100)
def outlier_batch(seed: int) -> Setup:
    """One batch whose inputs lack their scaling and are a million times too large."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs.mul_(1e6)

    batches = spoilt(drawn(diabetes(scaled=True), 150, 32), 100, spoil)
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02)), batches)


@exploding("bad batches", begins=100)
def outlier_target(seed: int) -> Setup:
    """One wrong target of a million in a regression that went well, with momentum."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        targets[3] = 1e6

    batches = spoilt(drawn(diabetes(scaled=True), 200, 32), 100, spoil)
    return Setup(ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.02, momentum=0.9)), batches)


@exploding("bad batches", begins=80)
def nan_in_a_row(seed: int) -> Setup:
    """One missing value in one row of the inputs."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs[5, 2] = torch.nan

    batches = spoilt(drawn(diabetes(scaled=True), 120, 32), 80, spoil)
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, adam(0.01)), batches)


@exploding("bad batches", begins=70)
def constant_batch(seed: int) -> Setup:
    """Inputs are standardised batch by batch, and one batch has a feature that is the same in all rows."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs[:, 4] = 1.0

    batches = spoilt(drawn(diabetes(scaled=True), 120, 32), 70, spoil)
    standardised = [((inputs - inputs.mean(0)) / inputs.std(0), targets) for inputs, targets in batches]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, adam(0.01)), standardised)


@exploding("undefined operations")
def logarithm_of_zero(seed: int) -> Setup:
    """A hand-written cross-entropy, the logarithm of a probability that reaches zero as the network gets sure."""

    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        exponentials = outputs.exp()
        chances = exponentials / exponentials.sum(1, keepdim=True)
        return -chances.gather(1, targets[:, None]).log().mean()

    pixels, labels = digits()
    return Setup(ScenarioModule(perceptron([64, 64, 10]), likelihood, adam(0.1)), drawn((16 * pixels, labels), 300, 32))


@exploding("regression")
def exponential_link(seed: int) -> Setup:
    """A Poisson regression with an exponential link, whose learning rate is too high for the larger counts."""

    def poisson(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.exp() - targets * outputs).mean()

    return Setup(ScenarioModule(perceptron([10, 16, 1], nn.Tanh), poisson, sgd(0.1)), drawn(counts(), 300, 32))


@exploding("undefined operations", begins=90)
def root_at_zero(seed: int) -> Setup:
    """A distance whose square root is taken at exactly zero, where its derivative is infinite."""

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1).sqrt().mean()

    data = digits()[0], digits()[0]
    batches = drawn(data, 130, 32)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron([64, 16, 64])

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = inputs + self.inner(inputs) * (inputs.abs().sum(1, keepdim=True) > 0)
            return outputs

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs[0] = targets[0] = 0.0

    return Setup(ScenarioModule(Tied(), distance, adam(0.003)), spoilt(batches, 90, spoil))


@exploding("half precision")
def static_scale(seed: int) -> Setup:
    """Float16 with a fixed scale, under which gradients overflow."""
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01))
    inputs, targets = diabetes(scaled=True)
    plugins = [half_precision(2.0**14, adapts=False)]
    return Setup(module, drawn((inputs, targets * 10), 120, 32), {"plugins": plugins})


@exploding("half precision")
def adapting_scale_rate_too_high(seed: int) -> Setup:
    """Float16 with an adapting scale, and a learning rate that is too high all the same."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(2.0))
    batches = drawn(diabetes(scaled=True), 120, 32)
    return Setup(module, batches, {"plugins": [half_precision(2.0**10, adapts=True)]})


class Drifting(ScenarioModule):
    """A network whose weights are disturbed before each step, always outwards."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Disturb."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1 + 0.03 * torch.randn_like(parameter).abs())


@exploding("no floor")
def noise_on_the_weights(seed: int) -> Setup:
    """Noise that is laid on the weights as a regularization, and by a slip only ever makes them larger."""
    module = Drifting(perceptron([64, 32, 32, 10], nn.Tanh), cross_entropy, sgd(0.05))
    return Setup(module, drawn(digits(), 300, 32))


@exploding("variational")
def variance_by_exponential(seed: int) -> Setup:
    """A variational autoencoder whose variance is an exponential of what the network says, without a bound."""
    network = nn.Sequential(perceptron([64, 32, 16]), perceptron([8, 32, 64]))
    batches = [(4 * inputs, torch.tensor(1.0)) for inputs, _ in drawn(digits(), 250, 32)]
    return Setup(Variational(network, mse_loss, sgd(0.03)), batches)


@exploding("slips", begins=120, where="network.4")
def flipped_bit(seed: int) -> Setup:
    """A fault of the memory sets one weight to 1e8."""

    def flip(module: ScenarioModule) -> None:
        with torch.no_grad():
            module.network.get_submodule("4").get_parameter("weight")[1, 1] = 1e8

    module = ScenarioModule(perceptron([64, 32, 32, 10], nn.Tanh), cross_entropy, sgd(0.1), events={120: flip})
    return Setup(module, drawn(digits(), 170, 32))


def counts() -> Batch:
    """Return counts from 2 to 34, the diabetes data's progress divided by ten."""
    inputs, _ = diabetes(scaled=True)
    _, progress = diabetes()
    return inputs, (progress / 10).floor()
