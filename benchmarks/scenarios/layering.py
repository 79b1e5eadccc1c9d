"""Networks of layers that other families do not have: sets of points, bases, products, splines, complex weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, silu

from benchmarks.scenarios.data import Batch, diabetes, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.inverting import yearly_pieces
from benchmarks.scenarios.module import LanguageModel, Residual, ScenarioModule, adam, perceptron, sgd


class Cloud(nn.Module):
    """Classifies a set of points by the largest features of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.of_points = perceptron([3, 64, 64])
        self.of_sets = perceptron([64, 32, 4])

    def forward(self, points: Tensor) -> Tensor:
        """Return the logits of sets, shape ``(batch, 4)``."""
        logits: Tensor = self.of_sets(self.of_points(points).amax(1))
        return logits


def _clouds(steps: int) -> list[Batch]:
    batches = []
    for _ in range(steps):
        labels, points = torch.randint(4, (32,)), torch.randn(32, 40, 3)
        stretch = torch.tensor([[1.0, 1, 1], [2, 1, 1], [1, 0.3, 1], [2, 2, 0.3]])[labels][:, None]
        batches.append((points * stretch, labels))
    return batches


@exploding("point clouds", begins=60)
def clouds_in_millimetres(seed: int) -> Setup:
    """From step 60 on points come in other units, with momentum, in a network without normalization."""
    batches = _clouds(220)
    batches[60:] = [(30 * points, labels) for points, labels in batches[60:]]
    return Setup(ScenarioModule(Cloud(), cross_entropy, sgd(0.05, 0.9)), batches)


@healthy("point clouds")
def clouds_by_adamw(seed: int) -> Setup:
    """Sets of points by AdamW at a high rate."""
    make = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return Setup(ScenarioModule(Cloud(), cross_entropy, make), _clouds(220))


class Covariance(ScenarioModule):
    """Learns a covariance by the likelihood of samples: the inverse of a triangular matrix, by its logarithms."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the negative log-likelihood, per sample."""
        (numbers,) = self.network.parameters()
        diagonal = torch.diagonal(numbers)
        factor = torch.tril(numbers, -1) + torch.diag_embed(diagonal.exp())
        loss: Tensor = 0.5 * (batch @ factor).square().sum(1).mean() - diagonal.sum()
        return loss


def _covariance(rate: Any, schedule: Any = None) -> Covariance:
    return Covariance(nn.ParameterList([torch.zeros(12, 12)]), mse_loss, rate, schedule)


def _correlated(steps: int) -> list[Tensor]:
    return list(torch.randn(steps, 32, 12) @ (torch.randn(12, 12) * 0.8))


@exploding("covariances", begins=100)
def precision_by_adam(seed: int) -> Setup:
    """The logarithms of precisions by Adam, whose rate is raised from a tenth after a hundred steps."""
    schedule = lambda step: 0.02 if step < 100 else 1.0  # noqa: E731
    return Setup(_covariance(adam(1.5), schedule), _correlated(250))


@healthy("covariances")
def precision_by_descent(seed: int) -> Setup:
    """The same by descent from the unit matrix: the loss crosses zero on its way."""
    return Setup(_covariance(sgd(0.01)), _correlated(300))


class Distance(ScenarioModule):
    """Learns the distance to a circle: zero on it, with a gradient of length one everywhere."""

    needs_gradients = True

    def loss(self, batch: Tensor) -> Tensor:
        """Return the errors of the values and of the slope."""
        on_it = batch[:24] / batch[:24].norm(dim=1, keepdim=True)
        places = batch.clone().requires_grad_()
        values = self.network(places)
        (slope,) = torch.autograd.grad(values.sum(), places, create_graph=True)
        loss: Tensor = 3 * self.network(on_it).abs().mean() + (slope.norm(dim=1) - 1).square().mean()
        return loss


@exploding("surfaces")
def surface_without_warm_up(seed: int) -> Setup:
    """Adam at a high rate from the start on, through a gradient of the gradient."""
    network = perceptron([2, 64, 64, 64, 1], nn.Softplus)
    return Setup(Distance(network, mse_loss, adam(0.1)), list(1.5 * torch.randn(200, 48, 2)))


@healthy("surfaces")
def surface_with_restarts(seed: int) -> Setup:
    """The same at a lower rate that starts anew every 80 steps."""
    network = perceptron([2, 64, 64, 64, 1], nn.Softplus)
    schedule = lambda step: 1.0 - 0.95 * (step % 80) / 80  # noqa: E731
    return Setup(Distance(network, mse_loss, adam(0.003), schedule), list(1.5 * torch.randn(240, 48, 2)))


class Bumps(nn.Module):
    """A sum of Gaussian bumps with learned places, widths and heights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(count, 10))
        self.log_widths = nn.Parameter(torch.ones(count))
        self.heights = nn.Parameter(torch.zeros(count))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the values, shape ``(batch, 1)``."""
        distances = (inputs[:, None] - self.places).square().sum(-1)
        values: Tensor = torch.exp(-distances / (2 * self.log_widths).exp()) @ self.heights
        return values[:, None]


@exploding("radial bases")
def bumps_grow_wide(seed: int) -> Setup:
    """Momentum at a rate that suits heights of narrow bumps: wide ones act all together."""
    return Setup(ScenarioModule(Bumps(60), mse_loss, sgd(0.7, 0.9)), drawn(diabetes(True), 220, 48))


@healthy("radial bases")
def bumps_by_adagrad(seed: int) -> Setup:
    """Adagrad at a high rate, which is right for it."""
    make = partial(torch.optim.Adagrad, lr=0.2)
    return Setup(ScenarioModule(Bumps(60), mse_loss, make), drawn(diabetes(True), 250, 48))


class Powers(nn.Module):
    """Products of powers of positive inputs: weights are exponents."""

    def __init__(self) -> None:
        super().__init__()
        self.exponents, self.sum = nn.Linear(5, 8), nn.Linear(8, 1)
        nn.init.normal_(self.exponents.weight, std=0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum of the products."""
        outputs: Tensor = self.sum(torch.exp(self.exponents(inputs.log())))
        return outputs


def _laws(steps: int) -> list[Batch]:
    inputs = torch.rand(steps, 48, 5) * 3 + 0.1
    return [(one, (one[:, :1] * one[:, 1:2] ** 2 / one[:, 2:3].sqrt())) for one in inputs]


@exploding("product units")
def powers_by_nadam(seed: int) -> Setup:
    """NAdam at a rate that changes exponents by one at a step."""
    return Setup(ScenarioModule(Powers(), mse_loss, partial(torch.optim.NAdam, lr=0.8)), _laws(220))


@healthy("product units")
def powers_by_adam(seed: int) -> Setup:
    """A law of physics by Adam: batches with an input near zero have gradients a hundred times as large."""
    return Setup(ScenarioModule(Powers(), mse_loss, adam(0.02)), _laws(300))


class Splines(nn.Module):
    """A layer whose every connection is a function of its own, given by its values at knots."""

    def __init__(self, inputs: int, outputs: int, knots: int = 8) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(-3, 3, knots))
        self.values = nn.Parameter(0.1 * torch.randn(inputs * knots, outputs))
        self.base = nn.Linear(inputs, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sums of the functions."""
        hats = (1 - (inputs[..., None] - self.get_buffer("knots")).abs() / 0.857).relu()
        outputs: Tensor = self.base(silu(inputs)) + hats.flatten(1) @ self.values
        return outputs


@exploding("splines")
def splines_by_momentum(seed: int) -> Setup:
    """Two layers of functions: what leaves the knots is answered by the base alone."""
    network = nn.Sequential(Splines(10, 24), Splines(24, 1))
    return Setup(ScenarioModule(network, mse_loss, sgd(0.12, 0.95)), drawn(diabetes(True), 220, 48))


class Accumulation(nn.Module):
    """Attention without a softmax: every place reads the sum of all earlier products of keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is read, shape ``(batch, time, width)``."""
        query, key, value = self.mix(inputs).chunk(3, -1)
        weights = torch.tril(query @ key.transpose(1, 2)) / query.shape[2]
        outputs: Tensor = self.out(weights @ value)
        return outputs


@exploding("linear attention", begins=40)
def sums_over_longer_text(seed: int) -> Setup:
    """Adam with a warm-up; from step 40 on pieces are three times as long, and sums with them."""
    _, count = text()
    network = LanguageModel(count, 32, nn.Sequential(*(Residual(Accumulation(32)) for _ in range(3))))
    schedule = lambda step: min(1.0, (step + 1) / 60)  # noqa: E731
    batches = [*lines(40, 8, 16), *lines(160, 8, 48)]
    return Setup(ScenarioModule(network, cross_entropy, adam(0.03), schedule), batches)


class Spectrum(nn.Module):
    """Filters a series by complex weights of its spectrum, twice."""

    def __init__(self, length: int) -> None:
        super().__init__()
        count = length // 2 + 1
        self.length = length
        self.filters = nn.Parameter(torch.randn(2, 16, count, dtype=torch.cfloat) / 3)
        self.head = nn.Linear(16 * length, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a prediction, shape ``(batch, 1)``."""
        hidden = inputs[:, None].expand(-1, 16, -1)
        for one in self.filters:
            hidden = torch.fft.irfft(torch.fft.rfft(hidden) * one, self.length)
            hidden = hidden * torch.sigmoid(hidden) + hidden
        outputs: Tensor = self.head(hidden.flatten(1))
        return outputs


@exploding("complex weights")
def spectra_by_momentum(seed: int) -> Setup:
    """Descent with momentum, where the loss is of the eighth degree in the filters."""
    return Setup(ScenarioModule(Spectrum(24), mse_loss, sgd(0.3, 0.9)), yearly_pieces(200, 32, 24))
