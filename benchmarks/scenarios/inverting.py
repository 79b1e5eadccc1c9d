"""Inverse problems: signals, factors, maps and filters that are recovered from what was measured of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, mse_loss

from benchmarks.scenarios.data import Batch, digits, sunspots
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, sgd


class Intensities(nn.Module):
    """A signal of 32 numbers, of which squares of projections are measured."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Parameter(0.3 * torch.randn(32))

    def forward(self, directions: Tensor) -> Tensor:
        """Return the squared projections."""
        squares: Tensor = (directions @ self.signal).square()
        return squares


def _intensities(steps: int) -> list[Batch]:
    signal, directions = torch.randn(32), torch.randn(steps, 64, 32)
    return list(zip(directions, (directions @ signal).square(), strict=True))


@exploding("phase retrieval")
def phases_by_descent(seed: int) -> Setup:
    """A loss of the fourth degree, by momentum at a rate at which the signal overshoots once it grows."""
    return Setup(ScenarioModule(Intensities(), mse_loss, sgd(0.0012, 0.9)), _intensities(250))


@healthy("phase retrieval")
def phases_by_adam(seed: int) -> Setup:
    """The same by Adam: a plateau first, then norms of the gradient that rise tenfold."""
    return Setup(ScenarioModule(Intensities(), mse_loss, adam(0.02)), _intensities(300))


class Components(nn.Module):
    """The sum of eight outer products of three vectors each, at given places."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(0.4 * torch.randn(3, 20, 8))

    def forward(self, places: Tensor) -> Tensor:
        """Return the entries at places, shape ``(batch, 3)``."""
        first, second, third = (self.factors[axis][places[:, axis]] for axis in range(3))
        return (first * second * third).sum(1)


def _entries(steps: int) -> list[Batch]:
    factors, places = torch.randn(3, 20, 4), torch.randint(20, (steps, 200, 3))
    first, second, third = (factors[axis][places[..., axis]] for axis in range(3))
    entries = (first * second * third).sum(-1)
    return list(zip(places, entries + 0.1 * torch.randn_like(entries), strict=True))


@exploding("tensor decompositions")
def components_run_away(seed: int) -> Setup:
    """Products of three factors, by momentum: two components grow against each other."""
    return Setup(ScenarioModule(Components(), mse_loss, sgd(0.6, 0.9)), _entries(250))


@healthy("tensor decompositions")
def components_by_descent(seed: int) -> Setup:
    """The same, at a rate that works."""
    return Setup(ScenarioModule(Components(), mse_loss, sgd(0.15, 0.9)), _entries(300))


class Places(nn.Module):
    """Places of 60 points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(60, 2)
        nn.init.normal_(self.places.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the distance of each pair."""
        first, second = self.places(pairs).unbind(1)
        distances: Tensor = ((first - second).square().sum(1) + 1e-6).sqrt()
        return distances


def _distances(steps: int) -> list[Batch]:
    places, pairs = 3 * torch.randn(60, 2), torch.randint(60, (steps, 100, 2))
    distances = (places[pairs[..., 0]] - places[pairs[..., 1]]).square().sum(-1).sqrt()
    return list(zip(pairs, distances, strict=True))


@exploding("maps of distances", begins=120)
def map_with_squared_distances(seed: int) -> Setup:
    """From step 120 on squared distances are compared, in other units, with the rate that suited the distances."""
    module = ScenarioModule(Places(), mse_loss, sgd(4.0, 0.5))

    def squares(of: ScenarioModule) -> None:
        of.criterion = lambda outputs, targets: mse_loss(outputs.square() / 5, targets.square() / 5)

    module.events = {120: squares}
    return Setup(module, _distances(260))


@healthy("maps of distances")
def map_of_distances(seed: int) -> Setup:
    """Points that start close together and move far, by descent at a high rate."""
    return Setup(ScenarioModule(Places(), mse_loss, sgd(8.0, 0.5)), _distances(250))


class Subspace(ScenarioModule):
    """Finds the directions of the largest variance, with a penalty for those that are not orthonormal."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the negative variance, and the penalty."""
        (directions,) = self.network.parameters()
        errors = directions.T @ directions - torch.eye(directions.shape[1])
        loss: Tensor = 20.0 + 5 * errors.square().sum() - (batch @ directions).square().sum(1).mean()
        return loss


def _subspace(rate: Any, schedule: Any = None) -> Subspace:
    return Subspace(nn.ParameterList([0.2 * torch.randn(16, 3)]), mse_loss, rate, schedule)


def _ellipsoid(steps: int) -> list[Tensor]:
    return list(torch.randn(steps, 48, 16) * 3 * torch.arange(1.0, 17.0) ** -0.5)


@exploding("eigenvectors")
def directions_warmed_up_too_far(seed: int) -> Setup:
    """A warm-up whose end is five times what a penalty of the fourth degree stands."""
    return Setup(_subspace(sgd(0.15), lambda step: min(1.0, (step + 1) / 100)), _ellipsoid(250))


@healthy("eigenvectors")
def directions_by_descent(seed: int) -> Setup:
    """Leaves a saddle: norms rise before they fall."""
    return Setup(_subspace(sgd(0.005)), _ellipsoid(300))


class Sources(ScenarioModule):
    """Separates mixed sources by their likelihood, whose determinant has a pole at every singular matrix."""

    def loss(self, batch: Tensor) -> Tensor:
        """Return the negative log-likelihood."""
        (matrix,) = self.network.parameters()
        separated = batch @ matrix
        loss: Tensor = 10.0 + 2 * separated.cosh().log().sum(1).mean() - 2 * torch.linalg.slogdet(matrix)[1]
        return loss


def _sources(rate: Any) -> Sources:
    return Sources(nn.ParameterList([torch.eye(6)]), mse_loss, rate)


def _mixed(steps: int) -> list[Tensor]:
    sources = torch.distributions.Laplace(0.0, 1.0).sample((steps, 40, 6))
    return list(sources @ (torch.eye(6) + 0.6 * torch.randn(6, 6)))


@exploding("unmixing")
def sources_past_the_pole(seed: int) -> Setup:
    """Momentum carries the matrix past singular ones."""
    return Setup(_sources(sgd(0.8, 0.9)), _mixed(250))


@healthy("unmixing")
def sources_by_descent(seed: int) -> Setup:
    """Heavy-tailed sources, plain descent."""
    return Setup(_sources(sgd(0.03)), _mixed(300))


class Alignment(ScenarioModule):
    """Finds the affine map that lays a blurred image on another one."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the difference of the images."""
        (numbers,) = self.network.parameters()
        grid = affine_grid(numbers[None].expand(len(batch[0]), 2, 3), list(batch[0].shape), align_corners=False)
        moved = grid_sample(batch[0], grid, align_corners=False, padding_mode="border")
        loss: Tensor = 10 * mse_loss(moved, batch[1])
        return loss


@exploding("registration")
def images_move_apart(seed: int) -> Setup:
    """Six numbers by Nesterov's momentum: after one step too far the images share nothing, and no gradient is left."""
    images = nn.functional.interpolate(digits()[0].reshape(-1, 1, 8, 8), size=16, mode="bilinear")
    there = torch.tensor([[1.0, 0.25, 0.15], [-0.25, 1.0, -0.1]])
    batches = []
    for rows in torch.randint(len(images), (200, 32)):
        grid = affine_grid(there[None].expand(32, 2, 3), [32, 1, 16, 16], align_corners=False)
        moved = grid_sample(images[rows], grid, align_corners=False, padding_mode="border")
        batches.append((images[rows], moved))
    network = nn.ParameterList([torch.eye(2, 3)])
    return Setup(Alignment(network, mse_loss, sgd(2.0, 0.9, 0.0)), batches)


class Taps(ScenarioModule):
    """An adaptive filter: one prediction per sample, from the last ones."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the squared error."""
        error: Tensor = (self.network(batch[0]) - batch[1]).square().mean()
        return error


def _echoes(steps: int, louder: int) -> list[Batch]:
    sound = torch.nn.functional.conv1d(torch.randn(1, 1, steps + 40), torch.tensor([[[0.3, 0.6, 1.0]]]))[0, 0]
    sound[louder:] *= 3
    echo = 0.9 ** torch.arange(24.0) * torch.randn(24)
    pieces = sound.unfold(0, 24, 1)[:steps]
    return [(piece[None], (piece @ echo)[None, None] + 0.05 * torch.randn(1, 1)) for piece in pieces]


@exploding("adaptive cancellers", begins=150)
def echo_of_a_louder_voice(seed: int) -> Setup:
    """From step 150 on the signal is three times as loud, and the rate of least mean squares nine times too high."""
    return Setup(Taps(nn.Linear(24, 1), mse_loss, sgd(0.008)), _echoes(320, 150))


@healthy("adaptive cancellers")
def echo_of_one_voice(seed: int) -> Setup:
    """Single samples: losses that vary a thousandfold from step to step."""
    return Setup(Taps(nn.Linear(24, 1), mse_loss, sgd(0.006)), _echoes(400, 10_000))


class Motion(nn.Module):
    """A damped pendulum with five unknown numbers, integrated over 30 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, states: Tensor) -> Tensor:
        """Return the angles at all times, shape ``(batch, 30)``."""
        pull, damping, second, push, drag = self.numbers
        angle, speed = states.unbind(1)
        angles = []
        for _ in range(30):
            force = -pull * angle.sin() - damping * speed + second * (2 * angle).sin() + push - drag * speed.tanh()
            speed = speed + 0.2 * force
            angle = angle + 0.2 * speed
            angles.append(angle)
        return torch.stack(angles, 1)


def _pendulums(steps: int) -> list[Batch]:
    truth = Motion()
    truth.numbers.data = torch.tensor([2.0, 0.1, 0.05, 0.2, 0.05])
    states = torch.randn(steps, 24, 2)
    with torch.no_grad():
        return [(one, truth(one) + 0.02 * torch.randn(24, 30)) for one in states]


@exploding("system identification")
def pendulum_gains_energy(seed: int) -> Setup:
    """RMSprop at a high rate: once the damping is negative, the motion grows exponentially in time."""
    make = partial(torch.optim.RMSprop, lr=0.4)
    return Setup(ScenarioModule(Motion(), mse_loss, make), _pendulums(150))


@healthy("system identification")
def pendulum_by_adam(seed: int) -> Setup:
    """Five numbers that start at zero or one, at a rate that changes them by a large share."""
    return Setup(ScenarioModule(Motion(), mse_loss, adam(0.02)), _pendulums(200))


def yearly_pieces(steps: int, size: int, length: int) -> list[Batch]:
    """Return pieces of the yearly number of sunspots in hundreds, with the year that follows."""
    series = sunspots() / 100
    starts = torch.randint(len(series) - length, (steps, size))
    return [
        (torch.stack([series[s : s + length] for s in some]), torch.stack([series[s + length] for s in some])[:, None])
        for some in starts
    ]
