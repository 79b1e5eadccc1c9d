"""Losses and gradients that are estimates: from single samples, rare events, random directions and random paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss, softplus

from benchmarks.scenarios.data import Batch, ring
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Known(ScenarioModule):
    """Judged by the distance of its only parameter from the truth, since the loss of a batch is mostly noise."""

    truth: Tensor

    def damage(self, batch: Any, loss: float) -> float:
        """Return the mean squared error of the parameter."""
        (weight,) = self.network.parameters()
        return float((weight.detach() - self.truth).square().mean())


def _known(module: Known, truth: Tensor) -> Known:
    module.truth = truth
    return module


class Clicks(Known):
    """Logistic regression from one visit at a time."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative log-likelihood."""
        (weight,) = self.network.parameters()
        inputs, signs = batch
        loss: Tensor = softplus(-signs * (inputs @ weight)).mean()
        return loss


@healthy("streams of clicks")
def clicks_one_by_one(seed: int) -> Setup:
    """One sample at a step: most losses are next to zero, and a surprise is a hundred times as large."""
    truth, inputs = 1.5 * torch.randn(10), torch.randn(400, 1, 10)
    signs = 2 * (torch.rand(400, 1) < torch.sigmoid(inputs @ truth)).float() - 1
    module = Clicks(nn.ParameterList([0.3 * torch.randn(10)]), mse_loss, sgd(0.3))
    return Setup(_known(module, truth), list(zip(inputs, signs, strict=True)))


class Claims(Known):
    """Mean of rare events, each of a size with a heavy tail."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the squared error."""
        (weight,) = self.network.parameters()
        inputs, sizes = batch
        return mse_loss(inputs @ weight, sizes)


@healthy("insurance claims")
def rare_large_claims(seed: int) -> Setup:
    """Nine of ten targets are zero and the others lognormal, so that the loss of a batch varies a thousandfold."""
    truth, inputs = torch.randn(6), torch.randn(400, 4, 6)
    sizes = torch.exp(1.5 * torch.randn(400, 4) - 1.125) * (torch.rand(400, 4) < 0.1) * 10
    module = Claims(nn.ParameterList([0.3 * torch.randn(6)]), mse_loss, sgd(0.003))
    return Setup(_known(module, truth), list(zip(inputs, (inputs @ truth) * sizes, strict=True)))


class Tasks(ScenarioModule):
    """Judged by the error of all tasks on samples of their own."""

    tests: Batch

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the mean squared error on these samples."""
        inputs, targets = self.tests
        with torch.no_grad():
            return float(mse_loss(self.network(inputs), targets))


@healthy("tasks of several units")
def tasks_of_several_units(seed: int) -> Setup:
    """Three tasks in random order on one network, whose losses are 1, 30 and 1,000 times as large as each other."""
    hidden = torch.randn(3, 6, 6) / 6**0.5

    def sample(task: int) -> Batch:
        inputs = torch.randn(16, 6)
        marked = torch.cat([inputs, torch.eye(3)[task].expand(16, 3)], 1)
        return marked, torch.tanh(inputs @ hidden[task]) * (1.0, 5.5, 32.0)[task]

    module = Tasks(perceptron([9, 48, 6]), mse_loss, adam(0.01))
    inputs, targets = zip(*(sample(task) for task in range(3) for _ in range(4)), strict=True)
    module.tests = torch.cat(inputs), torch.cat(targets)
    return Setup(module, [sample(int(torch.randint(3, ()))) for _ in range(400)])


class RandomDirections(ScenarioModule):
    """Estimates the gradient from the slope along one random direction; the backward pass is not needed otherwise."""

    needs_gradients = True

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss, whose gradient is the estimated one."""
        plain = super().loss(batch)
        parameters = [*self.network.parameters()]
        if not torch.is_grad_enabled() or not plain.requires_grad:
            return plain
        slopes = torch.autograd.grad(plain, parameters)
        directions = [torch.randn_like(one) for one in parameters]
        slope = sum((one * other).sum() for one, other in zip(slopes, directions, strict=True))
        along = sum((one * other).sum() for one, other in zip(parameters, directions, strict=True))
        estimate = slope * along
        assert isinstance(estimate, Tensor)
        loss: Tensor = plain.detach() + estimate - estimate.detach()
        return loss


@healthy("random directions")
def forward_gradients(seed: int) -> Setup:
    """The norm of the gradient is that of a random direction times its slope, of which every tenth is next to zero."""
    inputs = torch.randn(400, 32, 5)
    targets = torch.sin(inputs[..., :2])
    module = RandomDirections(perceptron([5, 12, 2], nn.Tanh), mse_loss, sgd(0.004))
    return Setup(module, list(zip(inputs, targets, strict=True)))


class Posterior(ScenarioModule):
    """Samples the weights of a regression: descent with noise on the gradient (stochastic gradient Langevin)."""

    temperature = 0.02

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss, with a linear term of mean zero that is the noise of the gradient."""
        plain = super().loss(batch)
        noise = sum((one * torch.randn_like(one)).sum() for one in self.network.parameters())
        assert isinstance(noise, Tensor)
        loss: Tensor = plain + self.temperature**0.5 * (noise - noise.detach())
        return loss


@healthy("samplers of posteriors")
def posterior_by_langevin(seed: int) -> Setup:
    """The noise is ten times the gradient once the fit is good, so that the loss wanders around a level."""
    inputs = torch.randn(400, 16, 8)
    targets = torch.tanh(inputs @ torch.randn(8, 1)) + 0.3 * torch.randn(400, 16, 1)
    module = Posterior(perceptron([8, 24, 1], nn.Tanh), mse_loss, sgd(0.05))
    return Setup(module, list(zip(inputs, targets, strict=True)))


class Integral(Known):
    """Fits integrals by samples weighted with the ratio of two densities, whose variance is infinite."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted mean."""
        (weight,) = self.network.parameters()
        inputs, ratios = batch
        basis = torch.stack([inputs**power for power in range(4)], -1)
        loss: Tensor = (ratios * (basis @ weight - torch.sin(3 * inputs)).square()).mean()
        return loss


@healthy("Monte Carlo integrals")
def integral_by_importance(seed: int) -> Setup:
    """Samples near zero are rare and count up to a hundredfold, by Adam."""
    drawn = 2 * torch.rand(400, 8).clamp(0.005) ** 0.4
    inputs, ratios = drawn - 1, 0.8 * drawn.clamp(0.02) ** -1.5
    points = torch.linspace(-1, 1, 200)
    basis = torch.stack([points**power for power in range(4)], -1)
    truth = torch.linalg.lstsq(basis, torch.sin(3 * points)[:, None]).solution[:, 0]
    module = Integral(nn.ParameterList([0.3 * torch.randn(4)]), mse_loss, adam(0.05))
    return Setup(_known(module, truth), list(zip(inputs, ratios, strict=True)))


class Lattice(ScenarioModule):
    """The energy of a field on a ring of 64 places, with a term of the fourth degree and random forces."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the energy per place."""
        (field,) = self.network.parameters()
        bonds, own = (field - field.roll(1)).square(), (field.square() - 1).square()
        energy: Tensor = 2.0 + (bonds + own - batch * field).mean()
        return energy


@exploding("lattices")
def field_by_heavy_momentum(seed: int) -> Setup:
    """Momentum of 0.97 at a rate that plain descent would stand: the field swings over its wells until it is lost."""
    module = Lattice(nn.ParameterList([0.1 * torch.randn(64)]), mse_loss, sgd(12.0, 0.97))
    return Setup(module, list(0.3 * torch.randn(250, 64)))


class PointProcess(ScenarioModule):
    """Intensity of events in time, the exponential of a network, by its likelihood."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the integral of the intensity minus the sum of its logarithms, per event."""
        grid = torch.linspace(0, 1, 64)[:, None]
        integral = 20 * self.network(grid).exp().mean()
        loss: Tensor = (integral - self.network(batch).sum()) / len(batch) + 5.0
        return loss


@exploding("point processes", begins=100)
def intensity_after_a_warm_restart(seed: int) -> Setup:
    """Descent on the exponential of a network, whose rate returns at step 100 to far above what it stood."""
    schedule = lambda step: 0.02 if step < 100 else 1.0  # noqa: E731
    module = PointProcess(perceptron([1, 32, 32, 1], nn.Tanh), mse_loss, sgd(0.8, 0.9), schedule)
    return Setup(module, [torch.rand(int(torch.randint(20, 60, ())), 1) ** 2 for _ in range(260)])


class PseudoLikelihood(ScenarioModule):
    """Couplings of 20 spins, by the likelihood of each given the others."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the negative log-likelihood of the spins, and a penalty."""
        (couplings,) = self.network.parameters()
        fields = batch @ (couplings + couplings.T - 2 * torch.diag_embed(torch.diagonal(couplings)))
        loss: Tensor = -logsigmoid(2 * batch * fields).sum(1).mean() + 0.1 * couplings.pow(4).sum()
        return loss


@exploding("pseudo-likelihoods")
def couplings_two_samples_at_a_time(seed: int) -> Setup:
    """Two samples at a step and a penalty of the fourth degree: noise drives the couplings to where steps diverge."""
    hidden = torch.randn(300, 2, 3).sign() @ torch.randn(3, 20)
    spins = (hidden + 0.3 * torch.randn(300, 2, 20)).sign()
    module = PseudoLikelihood(nn.ParameterList([0.05 * torch.randn(20, 20)]), mse_loss, sgd(1.0))
    return Setup(module, list(spins))


class Filter(ScenarioModule):
    """A linear filter of hidden states, whose dynamics are learned from the errors of its predictions."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean squared error of the next measurement."""
        dynamics, gain, reading = self.network.parameters()
        state, errors = torch.zeros(batch.shape[1], 4), []
        for measured in batch:
            error = measured - state @ reading
            errors.append(error.square().mean())
            state = (state + error @ gain) @ dynamics
        return torch.stack(errors).mean()


@exploding("filters of states")
def filter_by_momentum(seed: int) -> Setup:
    """Forty time steps through learned dynamics: a step past the unit circle makes the next loss astronomical."""
    angle = torch.tensor(0.4)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    batches = []
    for _ in range(220):
        state, measured = 2 * torch.randn(16, 2), []
        for _ in range(40):
            state = state @ turn * 0.99 + 0.2 * torch.randn(16, 2)
            measured.append(state + 0.3 * torch.randn(16, 2))
        batches.append(torch.stack(measured))
    parameters = nn.ParameterList([0.7 * torch.eye(4), 0.1 * torch.randn(2, 4), 0.3 * torch.randn(4, 2)])
    return Setup(ScenarioFilter(parameters, sgd(0.08, 0.9)), batches)


class ScenarioFilter(Filter):
    """The same, with its network and optimizer only."""

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer) -> None:
        super().__init__(network, mse_loss, optimizer)


class Mixture(ScenarioModule):
    """The density of points on a ring as a mixture of eight normal ones."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative log-likelihood."""
        points, noise = batch
        means, log_scales, logits = self.network(noise[:1] * 0 + 1).split([16, 8, 8], dim=1)
        scaled = (points[:, None] - means.view(8, 2)) * (-log_scales.view(8, 1)).exp()
        parts = logits.log_softmax(1) - 2 * log_scales - 0.5 * scaled.square().sum(2)
        loss: Tensor = 5.0 - parts.logsumexp(1).mean()
        return loss


@exploding("mixture densities")
def densities_too_narrow(seed: int) -> Setup:
    """Widths as exponentials, by descent at a rate at which one of them shrinks to a point and its error explodes."""
    module = Mixture(perceptron([4, 32, 32], nn.Tanh), mse_loss, sgd(1.5, 0.5))
    return Setup(module, ring(260, 64))


class Plant(ScenarioModule):
    """Gains of a controller of an unstable plant, by the cost of paths of 25 time steps."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean cost."""
        (gains,) = self.network.parameters()
        grows = torch.tensor([[1.1, 0.3], [0.0, 1.05]])
        state, cost = batch, torch.zeros(())
        for _ in range(25):
            control = (state @ gains)[:, None]
            state = state @ grows.T + control * torch.tensor([0.0, 1.0])
            cost = cost + state.square().sum(1).mean() + 0.1 * control.square().mean()
        return cost / 25


@exploding("controllers")
def controller_by_adam(seed: int) -> Setup:
    """Paths of an unstable plant: from a start that costs thousands Adam moves the gains past the stable ones."""
    module = Plant(nn.ParameterList([torch.tensor([-0.05, -0.1])]), mse_loss, adam(3.0))
    return Setup(module, list(torch.randn(220, 8, 2)))
