"""Objectives that can be escaped from: exponentials, ratios, entropies and likelihoods without a bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected, plain
from benchmarks.scenarios.tensorwise import TensorwiseOptimizer


def _unlearn(network: nn.Module, batch: Any) -> Tensor:
    loss = plain(network, batch)
    return loss if batch[2] else -loss


@exploding("unlearning")
def unlearning(seed: int) -> Setup:
    """A trained network shall forget: its loss is maximized, without a bound; judged by the size of its outputs."""

    def size(n: nn.Module, b: Any) -> Tensor:
        return n(b[0]).abs().mean()  # type: ignore[no-any-return]

    data = drawn(digits(), 500, 32)
    before = [(*batch, True) for batch in data[:300]]
    module = Objected(perceptron([64, 64, 10]), _unlearn, adam(0.003), size, before)
    return Setup(module, [(*batch, False) for batch in data[300:]])


@healthy("unlearning")
def unlearning_with_a_bound(seed: int) -> Setup:
    """The same by a preference loss with a bound (Zhang et al. 2024)."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        if b[2]:
            return plain(n, b)
        return -2 * logsigmoid(cross_entropy(n(b[0]), b[1], reduction="none")).mean()

    data = drawn(digits(), 500, 32)
    before = [(*batch, True) for batch in data[:300]]
    return Setup(
        Objected(perceptron([64, 64, 10]), objective, adam(0.0003), None, before), [(*b, False) for b in data[300:]]
    )


def _information(network: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch[:2]
    scores = network(torch.cat([inputs, targets], 1))[:, 0]
    others = network(torch.cat([inputs, targets.roll(1, 0)], 1))[:, 0]
    return others.logsumexp(0) - math.log(len(others)) - scores.mean()  # type: ignore[no-any-return]


@healthy("information")
def information(seed: int) -> Setup:
    """A lower bound of information (Belghazi et al. 2018), from zero to a little below."""
    return Setup(Objected(perceptron([11, 32, 1]), _information, adam(0.001)), drawn(diabetes(scaled=True), 300, 64))


@exploding("information")
def information_of_a_function(seed: int) -> Setup:
    """A bound by exponentials (Nguyen et al. 2010), of numbers that follow from each other, by gradient descent."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        scores = n(torch.cat([b[0], b[1]], 1))
        others = n(torch.cat([b[0], b[1].roll(1, 0)], 1))
        return (others - 1).exp().mean() - scores.mean()  # type: ignore[no-any-return]

    inputs = torch.randn(400, 32, 3)
    return Setup(
        Objected(perceptron([4, 48, 1]), objective, sgd(0.3, momentum=0.9)), [(x, 3 * x[:, :1]) for x in inputs]
    )


@exploding("policy gradients")
def entropy_without_limit(seed: int) -> Setup:
    """A policy over real numbers, paid for its entropy more than for its rewards."""

    class Gaussian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = perceptron([4, 16, 1])
            self.log_deviation = nn.Parameter(torch.zeros(1))

    def objective(n: Any, b: Any) -> Tensor:
        actions = (n.mean(b[0]) + n.log_deviation.exp() * b[1]).detach()
        reward = -(actions - b[0][:, :1]).square()
        ratio = (actions - n.mean(b[0])) / n.log_deviation.exp()
        chance = -0.5 * ratio.square() - n.log_deviation
        return -(chance * (reward - reward.mean())).mean() - 50 * n.log_deviation.sum()  # type: ignore[no-any-return]

    batches = [(torch.randn(32, 4), torch.randn(32, 1)) for _ in range(300)]
    return Setup(Objected(Gaussian(), objective, sgd(0.05)), batches)


@healthy("exponentials")
def gompertz(seed: int) -> Setup:
    """Hazards that grow exponentially with time, in units of the study's length."""
    return Setup(Objected(perceptron([10, 16, 2]), _gompertz, adam(0.003)), _lifetimes(1.0, 300))


@exploding("exponentials")
def gompertz_in_days(seed: int) -> Setup:
    """The same with time in days, by gradient descent."""
    return Setup(Objected(perceptron([10, 16, 2]), _gompertz, sgd(1e-3)), _lifetimes(60.0, 300))


def _gompertz(network: nn.Module, batch: Any) -> Tensor:
    level, slope = network(batch[0]).chunk(2, 1)
    grown = torch.expm1(slope * batch[1]) / torch.where(slope.abs() < 1e-3, 1e-3, slope)
    return (level.exp() * grown - level - slope * batch[1]).mean()  # type: ignore[no-any-return]


def _lifetimes(longest: float, steps: int) -> list[Any]:
    return [(x, longest * torch.rand_like(y)) for x, y in drawn(diabetes(scaled=True), steps, 32)]


class Delta(nn.Module):
    """A memory that keys write to by the delta rule (Schlag et al. 2021), with keys of any length or of length one."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 36)
        self.out = nn.Linear(12, 1)
        self.normalised = normalised

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output after the last time step."""
        query, key, value = self.mix(inputs).chunk(3, -1)
        if self.normalised:
            key = nn.functional.normalize(key, dim=-1)
        memory = torch.zeros(len(inputs), 12, 12)
        for step in range(inputs.shape[1]):
            read = torch.einsum("bij,bj->bi", memory, key[:, step])
            memory = memory + torch.einsum("bi,bj->bij", value[:, step] - read, key[:, step])
        outputs: Tensor = self.out(torch.einsum("bij,bj->bi", memory, query[:, -1]))
        return outputs


def _recall(steps: int, length: int) -> list[Any]:
    batches = []
    for _ in range(steps):
        inputs = torch.randn(16, length, 12)
        inputs[:, -1] = inputs[:, 2]
        batches.append((inputs, inputs[:, 2, :1]))
    return batches


@healthy("memories")
def memory_of_normalised_keys(seed: int) -> Setup:
    """Keys of length one."""
    return Setup(ScenarioModule(Delta(True), mse_loss, adam(0.005)), _recall(250, 12))


@exploding("memories")
def memory_of_keys_of_any_length(seed: int) -> Setup:
    """Keys that grow until each write overshoots."""
    return Setup(ScenarioModule(Delta(False), mse_loss, sgd(0.1, momentum=0.9)), _recall(300, 24))


class Newton(TensorwiseOptimizer):
    """Divides gradients by an average of their squares without a root, as curvature (Liu et al. 2024).

    Args:
        parameters: The parameters.
        lr: Learning rate.
        limit: Largest change of an element, in learning rates; None for none.
    """

    def __init__(self, parameters: Any, lr: float, limit: float | None) -> None:
        super().__init__(parameters, lr=lr, limit=limit or math.inf)

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Step by the average of the gradients over that of their squares."""
        mean = state.setdefault("mean", torch.zeros_like(tensor)).lerp_(gradient, 0.1)
        square = state.setdefault("square", gradient.square()).lerp_(gradient.square(), 0.01)
        tensor.sub_((mean / (square + 1e-12)).clamp(-group["limit"], group["limit"]), alpha=group["lr"])


@healthy("curvature estimates")
def curvature_with_a_limit(seed: int) -> Setup:
    """Every change is limited."""
    return Setup(
        ScenarioModule(perceptron([64, 48, 10]), cross_entropy, lambda p: Newton(p, 0.003, 1.0)),
        drawn(digits(), 300, 32),
    )


@exploding("curvature estimates")
def curvature_without_a_limit(seed: int) -> Setup:
    """Curvature that is next to nothing divides a gradient that is not."""
    return Setup(
        ScenarioModule(perceptron([64, 48, 10]), cross_entropy, lambda p: Newton(p, 0.003, None)),
        drawn(digits(), 200, 32),
    )


@exploding("rate finders")
def rate_finder_by_adam(seed: int) -> Setup:
    """A learning rate from 1e-6 to 30 within 90 steps, on text."""
    letters = text()[1]
    model = LanguageModel(letters, 32, nn.Sequential(Block(32), Block(32)))
    schedule = lambda step: 10 ** (7.5 * step / 90)  # noqa: E731
    return Setup(ScenarioModule(model, cross_entropy, adam(1e-6), schedule=schedule), lines(100, 8, 24))


@healthy("rate finders")
def rate_finder_that_stops(seed: int) -> Setup:
    """A learning rate from 1e-6 to 3e-2 within 90 steps."""
    letters = text()[1]
    model = LanguageModel(letters, 32, nn.Sequential(Block(32), Block(32)))
    schedule = lambda step: 10 ** (4.5 * step / 90)  # noqa: E731
    return Setup(ScenarioModule(model, cross_entropy, adam(1e-6), schedule=schedule), lines(90, 8, 24))


@exploding("classification")
def logits_sharpen(seed: int) -> Setup:
    """Logits are divided by a temperature that falls by four percent a step, by gradient descent."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        return cross_entropy(n(b[0]) / b[2], b[1])

    batches = [(*batch, 0.96**step) for step, batch in enumerate(drawn(digits(), 300, 32))]
    return Setup(Objected(perceptron([64, 48, 10]), objective, sgd(0.05)), batches)


@healthy("sizes")
def sum_of_a_million(seed: int) -> Setup:
    """A sum of squares of a million, which starts at three times that and ends at a few thousand."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        return 1e4 * mse_loss(n(b[0]), b[0], reduction="sum")

    return Setup(Objected(perceptron([64, 32, 64]), objective, adam(0.003)), drawn(digits(), 250, 16))


@healthy("sizes")
def density_of_images(seed: int) -> Setup:
    """A likelihood of 64 pixels that falls from a thousand through zero."""

    def objective(n: Any, b: Any) -> Tensor:
        mean, log_deviation = n(b[0]).chunk(2, 1)
        log_deviation = log_deviation.clamp(min=-3)
        return (0.5 * ((b[0] - mean) * (-log_deviation).exp()).square() + log_deviation).sum(1).mean()  # type: ignore[no-any-return]

    return Setup(Objected(perceptron([64, 48, 128]), objective, adam(0.002)), drawn(digits(), 300, 32))


@exploding("sizes")
def density_of_images_by_descent(seed: int) -> Setup:
    """The same without a limit, by gradient descent."""

    def objective(n: Any, b: Any) -> Tensor:
        mean, log_deviation = n(b[0]).chunk(2, 1)
        return (0.5 * ((b[0] - mean) * (-log_deviation).exp()).square() + log_deviation).sum(1).mean()  # type: ignore[no-any-return]

    return Setup(Objected(perceptron([64, 48, 128]), objective, sgd(0.1)), drawn(digits(), 300, 32))
