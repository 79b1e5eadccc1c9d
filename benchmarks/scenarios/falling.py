"""Losses that fall from near zero to a large negative value: to a lower bound, or without one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected


class _Vector(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(start)


class _Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron([10, 32, 16])
        self.log_scale = nn.Parameter(torch.zeros(1))


def _patients(steps: int) -> list[Any]:
    return drawn(diabetes(scaled=True), steps, 32)


@healthy("rewards")
def reward_of_a_small_error(seed: int) -> Setup:
    """A reward of a million, which an error of one makes next to nothing."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        return -1e6 * (-10 * mse_loss(n(b[0]) + 1, b[0][:, :1])).exp()

    return Setup(Objected(perceptron([10, 32, 1]), objective, adam(0.003)), _patients(500))


@healthy("rewards")
def lift_of_a_wing(seed: int) -> Setup:
    """A ratio with a maximum, times ten thousand, of angles that start near zero."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        angle = n(b[0]).abs()
        return -1e4 * (angle**3 / (1 + angle**6)).mean()  # type: ignore[no-any-return]

    return Setup(Objected(perceptron([10, 32, 1], gain=0.1), objective, adam(0.003)), _patients(400))


@exploding("rewards")
def reward_of_a_large_error(seed: int) -> Setup:
    """A squared error with the wrong sign, by gradient descent."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        return -mse_loss(n(b[0]), b[1])

    return Setup(Objected(perceptron([10, 32, 1]), objective, sgd(0.01)), _patients(300))


@healthy("densities to a bound")
def chance_of_eight_digits(seed: int) -> Setup:
    """The probability of eight digits at once, times ten thousand."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        each = cross_entropy(n(b[0]), b[1], reduction="none")
        return -1e4 * (-each.view(-1, 8).sum(1)).exp().mean()

    return Setup(Objected(perceptron([64, 64, 10]), objective, adam(0.003)), drawn(digits(), 400, 32))


def _likelihood(network: nn.Module, batch: Any) -> Tensor:
    mean, log_deviation = network(batch[0]).chunk(2, 1)
    log_deviation = log_deviation.clamp(min=batch[1])
    return (0.5 * ((batch[0] - mean) * (-log_deviation).exp()).square() + log_deviation - 0.5).sum(1).mean()  # type: ignore[no-any-return]


@healthy("densities to a bound")
def likelihood_of_five_directions(seed: int) -> Setup:
    """A density of 64 numbers that lie in five directions, with a least deviation."""
    directions = torch.randn(5, 64) / 5**0.5
    batches = [(torch.randn(32, 5) @ directions, -5.0) for _ in range(400)]
    return Setup(Objected(perceptron([64, 48, 128]), _likelihood, adam(0.003)), batches)


@exploding("densities to a bound")
def density_of_a_point(seed: int) -> Setup:
    """All samples are the same, and a density of them has no bound."""
    batches = [(torch.ones(32, 10), -math.inf)] * 600
    return Setup(Objected(perceptron([10, 32, 20]), _likelihood, sgd(0.01)), batches)


@healthy("fields")
def spins_that_align(seed: int) -> Setup:
    """The mean-field energy of 64 spins with random couplings, from a disordered start."""
    couplings = torch.randn(64, 64) / 8

    def objective(n: Any, b: Any) -> Tensor:
        spins = n.values.tanh()
        return -1e3 * spins @ (couplings + couplings.T) @ spins  # type: ignore[no-any-return]

    return Setup(Objected(_Vector(0.1 * torch.randn(64)), objective, adam(0.01)), [0] * 400)


@healthy("fields")
def field_with_two_wells(seed: int) -> Setup:
    """A field leaves the saddle between two wells, by gradient descent."""

    def objective(n: Any, b: Any) -> Tensor:
        return 100 * (0.5 * n.values.pow(4) - n.values.square()).sum()  # type: ignore[no-any-return]

    return Setup(Objected(_Vector(0.1 * torch.randn(256)), objective, sgd(2e-4)), [0] * 400)


@exploding("fields")
def field_without_a_well(seed: int) -> Setup:
    """The same without the term that bounds the energy."""

    def objective(n: Any, b: Any) -> Tensor:
        return -100 * n.values.square().sum()  # type: ignore[no-any-return]

    return Setup(Objected(_Vector(0.1 * torch.randn(256)), objective, sgd(2e-4)), [0] * 400)


@healthy("cosines")
def alignment_to_a_power(seed: int) -> Setup:
    """A large power of the cosine between two vectors, by gradient descent."""
    direction = normalize(torch.randn(512), dim=0)

    def objective(n: Any, b: Any) -> Tensor:
        return -1e5 * normalize(n.values, dim=0).matmul(direction).pow(4)

    return Setup(Objected(_Vector(torch.randn(512)), objective, sgd(1e-3)), [0] * 400)


@healthy("cosines")
def fidelity_of_rotations(seed: int) -> Setup:
    """The fidelity of sixteen rotations, from a plateau."""

    def objective(n: Any, b: Any) -> Tensor:
        return -1e3 * n.values.cos().square().prod()  # type: ignore[no-any-return]

    return Setup(Objected(_Vector(1.2 + 0.1 * torch.randn(16)), objective, adam(0.01)), [0] * 250)


@exploding("cosines")
def alignment_of_any_scale(seed: int) -> Setup:
    """The cosine is multiplied by a learned scale without a limit, by gradient descent."""
    directions = torch.randn(10, 16)

    def objective(n: Any, b: Any) -> Tensor:
        cosine = (normalize(n.network(b[0]), dim=1) * normalize(b[0] @ directions, dim=1)).sum(1)
        return -n.log_scale.exp() * cosine.mean()  # type: ignore[no-any-return]

    return Setup(Objected(_Scored(), objective, sgd(0.01)), _patients(400))
