"""Losses of further forms: around zero, summed, weighted, robust, with multipliers; and noise of every size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, linear, mse_loss, relu

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


def summed_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of all elements, summed."""
    return (outputs - targets).square().sum()


@healthy("sums")
def summed_with_constant(seed: int) -> Setup:
    """A log-likelihood summed over a batch, with its constant: far below zero."""
    module = ScenarioModule(perceptron([10, 32, 1]), lambda o, t: 0.5 * summed_error(o, t) - 4000.0, adam(0.003))
    return Setup(module, drawn(diabetes(scaled=True), 250, 128))


@healthy("sums")
def summed_over_batches_of_any_size(seed: int) -> Setup:
    """Summed over batches of four to two hundred samples."""
    batches = [drawn(digits(), 1, int(size))[0] for size in torch.randint(4, 200, (250,))]
    module = ScenarioModule(
        perceptron([64, 64, 10]), lambda o, t: cross_entropy(o, t, reduction="sum"), sgd(3e-4, momentum=0.9)
    )
    return Setup(module, batches)


@exploding("sums")
def summed_at_the_rate_of_means(seed: int) -> Setup:
    """A sum over 64 samples at a rate that suits their mean."""
    module = ScenarioModule(perceptron([10, 32, 1]), summed_error, sgd(0.03))
    return Setup(module, drawn(diabetes(scaled=True), 150, 64))


class ByUncertainty(ScenarioModule):
    """Two tasks whose losses are weighted by learned variances (Kendall et al. 2018); the loss falls below zero."""

    def __init__(self, optimizer: MakeOptimizer) -> None:
        super().__init__(perceptron([10, 32, 2]), mse_loss, optimizer)
        self.logarithms = nn.Parameter(torch.zeros(2))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return both errors over their variances, and the logarithms of these."""
        outputs = self.network(batch[0])
        errors = torch.stack([mse_loss(outputs[:, :1], batch[1]), mse_loss(outputs[:, 1:], batch[0][:, :1])])
        weighted: Tensor = (errors * (-self.logarithms).exp() + self.logarithms).sum()
        return weighted


@healthy("learned weights of losses")
def weighted_by_uncertainty(seed: int) -> Setup:
    """By Adam; the second task is learned almost without error."""
    return Setup(ByUncertainty(adam(0.003)), drawn(diabetes(scaled=True), 350, 32))


@exploding("learned weights of losses")
def weighted_by_uncertainty_by_descent(seed: int) -> Setup:
    """By descent at a rate that rises: the precision of the second task makes its slope steep."""
    module = ByUncertainty(sgd(0.1))
    module.schedule = lambda step: 1.02**step
    return Setup(module, drawn(diabetes(scaled=True), 350, 32))


class RawReturns(ScenarioModule):
    """A policy of ten arms by the plain score function, with raw rewards and no baseline (Williams 1992)."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the negative rewards of sampled arms, times their log-probabilities."""
        states, noise = batch
        logits = self.network(states)
        with torch.no_grad():
            arms = (logits.softmax(1).cumsum(1) < noise[:, :1]).sum(1).clamp(max=9)
            rewards = 2 * (states[:, :10].gather(1, arms[:, None])[:, 0]) + 3 * noise[:, 1]
        loss: Tensor = -(rewards * logits.log_softmax(1)[range(len(arms)), arms]).mean()
        return loss


def _states(steps: int, size: int) -> list[Any]:
    noise = torch.cat([torch.rand(steps, size, 1), torch.randn(steps, size, 1)], -1)
    return list(zip(torch.randn(steps, size, 16), noise, strict=True))


@healthy("policy gradients")
def raw_returns(seed: int) -> Setup:
    """The loss wanders around zero, and its noise is larger than itself."""
    return Setup(RawReturns(perceptron([16, 32, 10]), mse_loss, adam(0.003)), _states(400, 16))


@healthy("policy gradients")
def raw_returns_by_descent(seed: int) -> Setup:
    """The same by descent, four samples at a time."""
    return Setup(RawReturns(perceptron([16, 32, 10]), mse_loss, sgd(0.01)), _states(400, 4))


class Constrained(ScenarioModule):
    """A regression whose outputs are to be small, by a multiplier that rises while they are not (dual ascent).

    Args:
        optimizer: Builds the optimizer of the network.
        limit: Size of the outputs that is wanted; a negative one cannot be reached.
        gain: Step of the multiplier.
        growth: Factor of the multiplier at each step.
    """

    def __init__(self, optimizer: MakeOptimizer, limit: float, gain: float, growth: float = 1.0) -> None:
        super().__init__(perceptron([10, 32, 1]), mse_loss, optimizer)
        self.limit, self.gain, self.growth, self.multiplier = limit, gain, growth, 0.1

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error and the weighted excess, and move the multiplier."""
        outputs = self.network(batch[0])
        excess = outputs.square().mean() - self.limit
        loss: Tensor = mse_loss(outputs, batch[1]) + self.multiplier * excess
        if torch.is_grad_enabled():
            self.multiplier = max(0.0, self.multiplier * self.growth + self.gain * float(excess.detach()))
        return loss


@healthy("multipliers")
def constraint_is_met(seed: int) -> Setup:
    """The multiplier rises, overshoots, and settles."""
    return Setup(Constrained(adam(0.003), 0.05, 0.2), drawn(diabetes(scaled=True), 400, 32))


@exploding("multipliers")
def constraint_cannot_be_met(seed: int) -> Setup:
    """The multiplier rises by two percent a step until gradient descent does not bear it."""
    return Setup(Constrained(sgd(0.05), -0.05, 0.1, 1.02), drawn(diabetes(scaled=True), 400, 32))


@healthy("noise of every size")
def cauchy_targets(seed: int) -> Setup:
    """Targets with noise that has no mean, and an absolute error: the loss jumps a hundredfold."""
    noise = torch.distributions.Cauchy(0.0, 0.2)
    batches = [(x, y + noise.sample(y.shape)) for x, y in drawn(diabetes(scaled=True), 350, 8)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), l1_loss, adam(0.002)), batches)


@healthy("noise of every size")
def lognormal_sample_weights(seed: int) -> Setup:
    """One sample a step with a weight between a thousandth and a thousand: norms differ a millionfold."""

    class Weighted(ScenarioModule):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            weights = (2 * torch.randn(len(batch[0]))).exp()
            errors: Tensor = (self.network(batch[0]) - batch[1]).square()[:, 0]
            return (weights * errors).mean()

    return Setup(Weighted(perceptron([10, 32, 1]), mse_loss, adam(0.001)), drawn(diabetes(scaled=True), 350, 2))


@healthy("noise of every size")
def perceptron_rule(seed: int) -> Setup:
    """Only mistakes have a loss, and there are hardly any: most steps have neither loss nor gradient."""
    inputs, labels = digits()
    data = inputs, torch.where(labels > 4, 1.0, -1.0)[:, None]
    module = ScenarioModule(perceptron([64, 64, 1]), lambda o, t: relu(-o * t + 0.01).mean(), sgd(0.5))
    return Setup(module, drawn(data, 400, 4))


class Written(nn.Module):
    """A linear layer whose matrix is a sum of two products, one half of each zero, over a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(64, 64) / 8)
        self.inner = nn.ParameterList([nn.Parameter(torch.randn(4, 64) / 8) for _ in range(2)])
        self.outer = nn.ParameterList([nn.Parameter(torch.zeros(64, 4)) for _ in range(2)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of ten digits."""
        changes = [outer @ inner for outer, inner in zip(self.outer, self.inner, strict=True)]
        return linear(relu(linear(inputs, self.get_buffer("frozen") + changes[0])), changes[1])[:, :10]


@healthy("adapters")
def both_halves_of_zero(seed: int) -> Setup:
    """Low-rank changes in two layers that start at zero: the first gets no gradient until the second has moved."""
    return Setup(ScenarioModule(Written(), cross_entropy, adam(0.003)), drawn(digits(), 250, 32))


@healthy("decay")
def weights_decay_to_a_half(seed: int) -> Setup:
    """A decay that makes the weights half as large while the loss falls to where it balances."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(0.05, weight_decay=0.05))
    return Setup(module, drawn(digits(), 350, 32))


@exploding("decay")
def decay_of_the_wrong_sign(seed: int) -> Setup:
    """Decay that is added in place of taken off: weights grow by two percent a step."""

    def grow(module: ScenarioModule) -> None:
        with torch.no_grad():
            for parameter in module.network.parameters():
                parameter.mul_(1.02)

    events = dict.fromkeys(range(400), grow)
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(0.01), events=events)
    return Setup(module, drawn(digits(), 400, 32))


@exploding("noise of every size")
def noisy_and_creeping(seed: int) -> Setup:
    """One sample a step with heavy noise, by descent at a rate that rises by two percent a step."""
    noise = torch.distributions.StudentT(3.0)
    batches = [(x, y + noise.sample(y.shape)) for x, y in drawn(diabetes(scaled=True), 400, 1)]
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.005), lambda step: math.exp(0.02 * step))
    return Setup(module, batches)
