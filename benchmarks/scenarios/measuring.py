"""Losses of science: equations as losses, survival, counts, heteroscedastic and weighted likelihoods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, poisson_nll_loss

from benchmarks.scenarios.data import diabetes, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Equation(ScenarioModule):
    """A function that solves ``u'' = -(pi k)^2 sin(pi k x)`` with zero at both ends (Raissi et al. 2019)."""

    needs_gradients = True

    def __init__(self, optimizer: MakeOptimizer, waves: int, weight: float = 1.0, **more: Any) -> None:
        super().__init__(perceptron([1, 32, 32, 1], nn.Tanh), mse_loss, optimizer, **more)
        self.waves, self.weight = waves, weight

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the equation, and of the ends."""
        places = batch[0].clone().requires_grad_()
        values = self.network(places)
        slope = torch.autograd.grad(values.sum(), places, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), places, create_graph=True)[0]
        pull = (torch.pi * self.waves) ** 2 * (torch.pi * self.waves * places).sin()
        ends = self.network(torch.tensor([[0.0], [1.0]])).square().mean()
        return self.weight * (bend + pull).square().mean() + 100 * ends  # type: ignore[no-any-return]


def _places(steps: int, size: int) -> list[Any]:
    return [(one, one) for one in torch.rand(steps, size, 1)]


@healthy("equations")
def equation(seed: int) -> Setup:
    """One wave, by Adam."""
    return Setup(Equation(adam(0.003), 1), _places(250, 32))


@healthy("equations")
def equation_many_waves(seed: int) -> Setup:
    """Four waves: a loss of ten thousand with a long plateau."""
    return Setup(Equation(adam(0.005), 4), _places(300, 32))


@exploding("equations")
def equation_by_descent(seed: int) -> Setup:
    """One wave, by gradient descent at an everyday learning rate."""
    return Setup(Equation(sgd(0.01, momentum=0.9), 1), _places(200, 32))


@exploding("equations")
def equation_rate_rises(seed: int) -> Setup:
    """A learning rate that rises by three percent a step."""
    return Setup(Equation(sgd(1e-6), 1, schedule=lambda step: 1.05**step), _places(350, 32))


def hazard(outputs: Tensor, times: Tensor) -> Tensor:
    """Return the negative partial log-likelihood of Cox (1972), each row an event."""
    order = times[:, 0].argsort(descending=True)
    risks = outputs[order, 0]
    return -(risks - risks.logcumsumexp(0)).mean()


@healthy("survival")
def survival(seed: int) -> Setup:
    """Times of events by rank, by Adam."""
    return Setup(ScenarioModule(perceptron([10, 32, 1]), hazard, adam(0.003)), drawn(diabetes(scaled=True), 250, 32))


@healthy("survival")
def survival_small_batches(seed: int) -> Setup:
    """Four rows a step, so that the loss is noise for the most part."""
    return Setup(ScenarioModule(perceptron([10, 16, 1]), hazard, sgd(0.02)), drawn(diabetes(scaled=True), 300, 4))


@exploding("survival")
def survival_raw(seed: int) -> Setup:
    """Raw measurements, by gradient descent."""
    return Setup(ScenarioModule(perceptron([10, 32, 1]), hazard, sgd(0.3)), drawn(diabetes(), 200, 32))


def _counted(rate: float, steps: int, size: int) -> list[Any]:
    inputs = torch.randn(steps, size, 6)
    rates = (0.5 * inputs @ torch.randn(6, 1) + rate).exp().clamp(max=1e4)
    return list(zip(inputs, torch.poisson(rates), strict=True))


@healthy("counts")
def counts(seed: int) -> Setup:
    """Small counts by Poisson's likelihood: a loss around zero."""
    return Setup(ScenarioModule(perceptron([6, 32, 1]), poisson_nll_loss, adam(0.003)), _counted(0.0, 250, 32))


@healthy("counts")
def counts_large(seed: int) -> Setup:
    """Counts around a hundred: the loss falls from one hundred to minus three hundred."""
    return Setup(ScenarioModule(perceptron([6, 32, 1]), poisson_nll_loss, adam(0.01)), _counted(4.5, 250, 32))


@exploding("counts")
def counts_rate_too_high(seed: int) -> Setup:
    """Counts around a hundred, by gradient descent."""
    return Setup(ScenarioModule(perceptron([6, 32, 1]), poisson_nll_loss, sgd(0.05)), _counted(4.5, 200, 32))


@exploding("counts", begins=100)
def counts_of_another_unit(seed: int) -> Setup:
    """From step 100 on the counts are given in thousandths."""
    batches = _counted(1.0, 250, 32)
    batches = [(x, 1000 * y if step >= 100 else y) for step, (x, y) in enumerate(batches)]
    return Setup(ScenarioModule(perceptron([6, 32, 1]), poisson_nll_loss, sgd(0.02)), batches)


class Weighted(ScenarioModule):
    """Two regressions whose errors are weighted by learned variances (Kendall et al. 2018)."""

    def __init__(self, optimizer: MakeOptimizer, exact: bool) -> None:
        super().__init__(perceptron([10, 32, 2]), mse_loss, optimizer)
        self.log_variance = nn.Parameter(torch.zeros(2))
        self.exact = exact

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the weighted errors, of which the second can be brought to zero if it is exact."""
        inputs, targets = batch
        outputs = self.network(inputs)
        first = (outputs[:, :1] - targets).square().mean()
        second = (outputs[:, 1:] * (0 if self.exact else 1) - 0.3 * inputs[:, :1] * (not self.exact)).square().mean()
        errors = torch.stack([first, second])
        return (errors * (-self.log_variance).exp() + self.log_variance).sum()


@healthy("likelihoods")
def learned_variances(seed: int) -> Setup:
    """The loss falls through zero."""
    return Setup(Weighted(adam(0.01), exact=False), drawn(diabetes(scaled=True), 300, 32))


@exploding("likelihoods")
def variance_of_nothing(seed: int) -> Setup:
    """One error is exactly zero, so that its variance shrinks for ever at a learning rate that rises."""
    module = Weighted(sgd(0.05), exact=True)
    module.schedule = lambda step: 1.03**step
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


def density(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of a normal distribution whose deviation is learned without a bound."""
    mean, log_deviation = outputs.chunk(2, 1)
    return (log_deviation + 0.5 * ((targets - mean) * (-log_deviation).exp()).square()).mean()


@healthy("likelihoods")
def learned_deviation(seed: int) -> Setup:
    """Noisy targets and a small learning rate."""
    module = ScenarioModule(perceptron([10, 32, 2]), density, adam(0.001))
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


@healthy("likelihoods")
def learned_deviation_small_batches(seed: int) -> Setup:
    """Four rows a step: the loss jumps where the deviation was too small."""
    module = ScenarioModule(perceptron([10, 32, 2]), density, adam(0.001))
    return Setup(module, drawn(diabetes(scaled=True), 300, 4))


@exploding("likelihoods")
def deviation_by_descent(seed: int) -> Setup:
    """Targets without noise, by gradient descent: the deviation shrinks until an error is too many of them."""
    inputs = torch.randn(300, 32, 10)
    targets = inputs @ torch.randn(10, 1)
    module = ScenarioModule(perceptron([10, 2]), density, sgd(0.3))
    return Setup(module, list(zip(inputs, targets, strict=True)))


def tail_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the largest tenth of absolute errors."""
    errors = (outputs - targets).abs().flatten()
    return errors.topk(max(1, len(errors) // 10)).values.mean()


@healthy("likelihoods")
def worst_tenth(seed: int) -> Setup:
    """Only the worst tenth of 16 rows counts, that is one."""
    return Setup(ScenarioModule(perceptron([10, 16, 1]), tail_loss, sgd(0.01)), drawn(diabetes(scaled=True), 300, 16))
