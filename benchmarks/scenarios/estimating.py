"""Losses of statistical models: claims, grades, directions, shares, correlations, and densities by their slope."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, mse_loss, normalize, softplus

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


def _deviance_of_gamma(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of a gamma distribution with mean ``exp(outputs)``, up to a constant."""
    return (outputs + targets * (-outputs).exp()).mean()


@healthy("claims")
def claims_in_small_batches(seed: int) -> Setup:
    """Amounts with a gamma distribution of shape one half, eight at a time: losses and gradients have heavy tails."""
    inputs = torch.randn(1600, 6)
    mean = (0.5 * inputs[:, :1] + 0.3 * inputs[:, 1:2]).exp()
    data = inputs, mean * torch.distributions.Gamma(0.5, 0.5).sample((1600, 1))
    return Setup(ScenarioModule(perceptron([6, 24, 1]), _deviance_of_gamma, adam(0.005)), drawn(data, 240, 8))


@exploding("claims")
def claims_in_cents(seed: int) -> Setup:
    """Amounts in another unit, by descent: the exponential of the first outputs is far off."""
    inputs = torch.randn(1600, 6)
    data = inputs, 100 * (inputs[:, :1].exp() + 0.1)
    return Setup(ScenarioModule(perceptron([6, 24, 1]), _deviance_of_gamma, sgd(0.05, 0.9)), drawn(data, 160, 32))


class Grades(nn.Module):
    """A score, and thresholds in ascending order that separate ten grades."""

    def __init__(self) -> None:
        super().__init__()
        self.score = perceptron([64, 32, 1])
        self.gaps = nn.Parameter(torch.zeros(9))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of exceeding each threshold, shape ``(batch, 9)``."""
        logits: Tensor = self.score(inputs) - (self.gaps.exp().cumsum(0) - 5.0)
        return logits


def _exceeded(logits: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, (labels[:, None] > torch.arange(9)).float())


@healthy("ordered grades")
def grades_by_thresholds(seed: int) -> Setup:
    """Digits as grades in an order, with thresholds that are learned."""
    return Setup(ScenarioModule(Grades(), _exceeded, adam(0.01)), drawn(digits(), 240, 16))


@exploding("ordered grades")
def gaps_of_grades_by_descent(seed: int) -> Setup:
    """Gaps between thresholds are exponentials, and the rate is one for weights."""
    return Setup(ScenarioModule(Grades(), _exceeded, sgd(60.0, 0.9)), drawn(digits(), 160, 16))


def _concentrated(outputs: Tensor, targets: Tensor, scaled: bool) -> Tensor:
    """Return the negative log-likelihood of angles by the distribution of von Mises."""
    mean, concentration = outputs[:, 0], outputs[:, 1].exp()
    if scaled:
        normalizer = concentration + torch.special.i0e(concentration).log()
    else:
        normalizer = torch.special.i0(concentration).log()
    loss: Tensor = (normalizer - concentration * (targets - mean).cos()).mean()
    return loss


def _angles(steps: int, size: int, noise: float) -> list[Batch]:
    inputs = torch.randn(2000, 5)
    return drawn((inputs, inputs[:, 0] + noise * torch.randn(2000)), steps, size)


@healthy("directions")
def directions_with_doubt(seed: int) -> Setup:
    """Angles and how certain they are; the loss falls below zero as the noise turns out to be small."""
    module = ScenarioModule(perceptron([5, 32, 2]), lambda o, t: _concentrated(o, t, scaled=True), adam(0.005))
    return Setup(module, _angles(260, 16, 0.3))


@exploding("directions")
def directions_without_doubt(seed: int) -> Setup:
    """Angles without noise: the certainty grows until a Bessel function overflows."""
    module = ScenarioModule(perceptron([5, 32, 2]), lambda o, t: _concentrated(o, t, scaled=False), adam(0.03))
    return Setup(module, _angles(400, 64, 0.0))


@healthy("shares")
def shares_of_a_whole(seed: int) -> Setup:
    """Three shares with a Dirichlet distribution, eight samples at a time; the loss is negative."""
    inputs = torch.randn(1500, 4)
    shares = torch.distributions.Dirichlet(2 * (0.7 * inputs[:, :3]).exp()).sample()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        densities: Tensor = torch.distributions.Dirichlet(softplus(outputs) + 0.05).log_prob(targets)  # type: ignore[no-untyped-call]
        return -densities.mean()

    return Setup(ScenarioModule(perceptron([4, 24, 3]), criterion, adam(0.005)), drawn((inputs, shares), 240, 8))


@healthy("evidence")
def evidence_for_a_forecast(seed: int) -> Setup:
    """Evidential regression: a Student distribution whose scale and degrees of freedom are outputs."""

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, scale, degrees = outputs[:, :1], softplus(outputs[:, 1:2]) + 0.01, 1 + softplus(outputs[:, 2:])
        densities: Tensor = torch.distributions.StudentT(degrees, mean, scale).log_prob(targets)  # type: ignore[no-untyped-call]
        return -densities.mean()

    module = ScenarioModule(perceptron([10, 32, 3]), criterion, adam(0.003))
    return Setup(module, drawn(diabetes(scaled=True), 260, 8))


@healthy("outliers of any size")
def trimmed_to_the_best(seed: int) -> Setup:
    """A fifth of the targets is nonsense of Cauchy's distribution; the worst third of each batch does not count."""
    inputs, targets = diabetes(scaled=True)
    wild = torch.where(
        torch.rand_like(targets) < 0.2, torch.distributions.Cauchy(0.0, 3.0).sample(targets.shape), targets
    )

    def criterion(outputs: Tensor, of_batch: Tensor) -> Tensor:
        squares = (outputs - of_batch).square().flatten()
        return squares.sort().values[: 2 * len(squares) // 3].mean()

    return Setup(ScenarioModule(perceptron([10, 32, 1]), criterion, sgd(0.02, 0.9)), drawn((inputs, wild), 240, 12))


class Views(ScenarioModule):
    """Two views of a digit, its upper and its lower half, whose codes shall be correlated.

    Args:
        optimizer: Builds the optimizer.
        ridge: What is added to the covariances; next to nothing makes their inverse roots wild.
    """

    def __init__(self, optimizer: MakeOptimizer, ridge: float) -> None:
        networks = nn.ModuleList([perceptron([32, 24, 6]), perceptron([32, 24, 6])])
        super().__init__(networks, mse_loss, optimizer)
        self.ridge = ridge

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative sum of squared correlations."""
        one, other = (net(half) for net, half in zip(self.network.children(), batch[0].chunk(2, dim=1), strict=True))
        one, other = one - one.mean(0), other - other.mean(0)
        eye, count = torch.eye(6), len(one) - 1
        of_one, of_other = (x.T @ x / count + self.ridge * eye for x in (one, other))
        both = one.T @ other / count
        correlations: Tensor = torch.linalg.solve_ex(of_one, both)[0] @ torch.linalg.solve_ex(of_other, both.T)[0]
        return -correlations.trace()


@healthy("correlations")
def halves_correlated(seed: int) -> Setup:
    """A negative loss from minus one to minus five, with a ridge."""
    return Setup(Views(adam(0.003), 1e-2), drawn(digits(), 220, 64))


@exploding("correlations")
def halves_correlated_without_a_ridge(seed: int) -> Setup:
    """Six correlations from eight samples by descent: covariances are next to singular."""
    return Setup(Views(sgd(0.5, 0.9), 1e-7), drawn(digits(), 160, 8))


class Slopes(ByStep):
    """A network whose loss is made of its own slope."""

    needs_gradients = True


def _sliced(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the sliced objective of score matching: half the squared score and its slope, along random directions."""
    places = inputs.clone().requires_grad_()
    direction = normalize(torch.randn_like(places), dim=1)
    score = network(places)
    (slope,) = torch.autograd.grad((score * direction).sum(), places, create_graph=True)
    loss: Tensor = (0.5 * (score * direction).sum(1).square() + (slope * direction).sum(1)).mean()
    return loss


def _two_moons(steps: int, size: int, noise: float) -> list[Batch]:
    angles = math.pi * torch.rand(steps, size)
    upper = (torch.rand(steps, size) < 0.5).float()
    places = torch.stack([angles.cos() + upper - 0.5, (2 * upper - 1) * angles.sin()], -1)
    places = places + noise * torch.randn_like(places)
    return [(one, one) for one in places]


@healthy("score matching")
def scores_along_slices(seed: int) -> Setup:
    """The loss starts at zero, is noisy, and falls to minus several units."""
    module = Slopes(perceptron([2, 48, 2], nn.SiLU), lambda n, b, _: _sliced(n, b[0]), adam(0.003))
    return Setup(module, _two_moons(260, 64, 0.3))


@exploding("score matching")
def scores_on_a_line_by_descent(seed: int) -> Setup:
    """Points on a line without noise have no score: the slope across it falls without end, faster and faster."""
    module = Slopes(perceptron([2, 48, 2], nn.SiLU), lambda n, b, _: _sliced(n, b[0]), sgd(0.3, 0.9))
    return Setup(module, _two_moons(260, 64, 0.0))


class BoltzmannMachine(ScenarioModule):
    """Binary hidden units over pixels; the loss is the free energy of data less that of samples after one turn."""

    decay = 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Return a difference around zero whose gradient is that of contrastive divergence."""
        weights, hidden, visible = self.network.parameters()
        with torch.no_grad():
            on = torch.bernoulli((batch[0] @ weights + hidden).sigmoid())
            samples = torch.bernoulli((on @ weights.T + visible).sigmoid())
        energy = [-(x @ visible) + logsigmoid(-(x @ weights + hidden)).sum(1) for x in (batch[0].round(), samples)]
        loss: Tensor = (energy[0] - energy[1]).mean() + 0.5 * self.decay * weights.square().sum()
        return loss

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the error of the pixels after one turn."""
        weights, hidden, visible = self.network.parameters()
        with torch.no_grad():
            turned = (((batch[0] @ weights + hidden).sigmoid()) @ weights.T + visible).sigmoid()
        return float(mse_loss(turned, batch[0]))


def _machine() -> nn.Module:
    return nn.ParameterList([0.05 * torch.randn(64, 32), torch.zeros(32), torch.zeros(64)])


@healthy("Boltzmann machines")
def contrastive_divergence(seed: int) -> Setup:
    """The loss is a difference of energies of either sign and says little."""
    return Setup(BoltzmannMachine(_machine(), mse_loss, sgd(0.05, 0.5)), drawn(digits(), 240, 32))


@exploding("Boltzmann machines")
def contrastive_divergence_with_negative_decay(seed: int) -> Setup:
    """The decay of weights has the wrong sign, which samples after one turn do not correct."""
    module = BoltzmannMachine(_machine(), mse_loss, sgd(0.2, 0.9))
    module.decay = -0.3
    return Setup(module, drawn(digits(), 260, 32))
