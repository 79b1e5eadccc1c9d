"""Runs whose objective changes by plan: terms that join, other weights, reductions, units, temperatures and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, one_hot, softmax

from benchmarks.scenarios.by_step import ByStep, error
from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import adam, perceptron, sgd


def _points(steps: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Draw times from 0 to 6 and a damped oscillation at these times."""
    times = 6 * torch.rand(steps, size, 1)
    return list(zip(times, (-0.3 * times).exp() * (2 * times).cos() + 0.02 * torch.randn_like(times), strict=True))


def _residual(network: nn.Module, times: Tensor) -> Any:
    """Return the mean squared residual of the equation that the oscillation solves, by differences."""
    width = 0.05
    now, before, after = network(times), network(times - width), network(times + width)
    acceleration, speed = (after - 2 * now + before) / width**2, (after - before) / (2 * width)
    return (acceleration + 0.6 * speed + 4.09 * now).square().mean()


@healthy("residuals that join")
def residual_of_an_equation_joins(seed: int) -> Setup:
    """At step 150 the residual of the equation joins the error of the data, and the loss is many times as large."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        loss = error(network, batch, step)
        return loss + _residual(network, batch[0]) if step >= 150 else loss

    network = perceptron([1, 48, 48, 1], nn.Tanh)
    return Setup(ByStep(network, objective, adam(0.003), error), _points(400))


@exploding("residuals that join", begins=150)
def residual_of_an_equation_at_the_old_rate(seed: int) -> Setup:
    """The residual joins, and descent goes on at a rate that fits the error of the data only."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        loss = error(network, batch, step)
        return loss + 20 * _residual(network, batch[0]) if step >= 150 else loss

    network = perceptron([1, 48, 48, 1], nn.Tanh)
    return Setup(ByStep(network, objective, sgd(0.1), error), _points(300))


@healthy("reductions")
def mean_replaced_by_sum(seed: int) -> Setup:
    """From step 120 on errors are summed over the batch, and the rate is divided by its size."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return error(network, batch, step) * (48 if step >= 120 else 1)

    network = perceptron([10, 32, 1])
    module = ByStep(network, objective, sgd(0.05), error, schedule=lambda step: 1 / 48 if step >= 120 else 1.0)
    return Setup(module, drawn(diabetes(scaled=True), 300, 48))


@exploding("reductions", begins=120)
def sum_at_the_rate_of_the_mean(seed: int) -> Setup:
    """From step 120 on errors are summed over the batch, and the rate stays."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return error(network, batch, step) * (48 if step >= 120 else 1)

    return Setup(ByStep(perceptron([10, 32, 1]), objective, sgd(0.05), error), drawn(diabetes(scaled=True), 300, 48))


def _weighted(weight: Callable[[int], float]) -> Callable[[nn.Module, Any, int], Tensor]:
    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        weights = torch.ones(10)
        weights[7:] = weight(step)
        each = cross_entropy(network(batch[0]), batch[1], reduction="none")
        return (weights[batch[1]] * each).mean()

    return objective


def _plain_entropy(network: nn.Module, batch: Any, step: int) -> Tensor:
    return cross_entropy(network(batch[0]), batch[1])


@healthy("weights of classes")
def classes_weighted_later(seed: int) -> Setup:
    """From step 100 on three classes out of ten count forty times as much."""
    module = ByStep(
        perceptron([64, 48, 10]), _weighted(lambda step: 40.0 if step >= 100 else 1.0), adam(0.003), _plain_entropy
    )
    return Setup(module, drawn(digits(), 260, 32))


@exploding("weights of classes", begins=100)
def classes_weighted_far_too_much(seed: int) -> Setup:
    """From step 100 on three classes count two thousand times as much, and descent overshoots."""
    network = perceptron([64, 48, 48, 10])
    module = ByStep(network, _weighted(lambda step: 2000.0 if step >= 100 else 1.0), sgd(0.05), _plain_entropy)
    return Setup(module, drawn(digits(), 260, 32))


def _violation(network: nn.Module, batch: Any) -> Any:
    """Return how far the mean prediction of each half of the inputs is from that of the other, squared."""
    outputs, first = network(batch[0]), batch[0][:, 1] > 0
    return (outputs[first].mean() - outputs[~first].mean() - 1.0).square()


@healthy("penalty methods")
def penalty_raised_by_stages(seed: int) -> Setup:
    """The weight of a constraint that cannot quite be met is tripled every 40 steps, up to 243."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        return error(network, batch, step) + 3.0 ** min(step // 40, 5) * _violation(network, batch)

    return Setup(ByStep(perceptron([10, 32, 1]), objective, adam(0.002), error), drawn(diabetes(scaled=True), 320, 64))


@exploding("penalty methods", begins=40)
def penalty_raised_without_end(seed: int) -> Setup:
    """The weight of the constraint is tripled every 40 steps at the same rate of descent."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        return error(network, batch, step) + 3.0 ** (step // 40) * _violation(network, batch)

    return Setup(ByStep(perceptron([10, 32, 1]), objective, sgd(0.02), error), drawn(diabetes(scaled=True), 480, 64))


@healthy("temperatures by plan")
def temperature_lowered_to_a_tenth(seed: int) -> Setup:
    """The temperature of the softmax falls from 2 to 0.1 within 200 steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return cross_entropy(network(batch[0]) / (2 * 20 ** -min(step / 200, 1)), batch[1])

    return Setup(ByStep(perceptron([64, 48, 10]), objective, adam(0.001)), drawn(digits(), 280, 32))


@exploding("temperatures by plan")
def temperature_lowered_to_nothing(seed: int) -> Setup:
    """The temperature falls by 4 % at each step, and with it the step size that is stable."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        outputs = network(batch[0])
        return cross_entropy(outputs / 0.96**step, batch[1]) + 0.1 * outputs.square().mean()

    network = perceptron([64, 48, 10])
    return Setup(ByStep(network, objective, sgd(0.05), lambda n, b, s: n(b[0]).abs().mean()), drawn(digits(), 320, 32))


@healthy("losses replaced")
def huber_replaced_by_squares(seed: int) -> Setup:
    """From step 100 on raw errors are squared, where they were counted linearly: the loss is many times as large."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        outputs = network(batch[0])
        return mse_loss(outputs, 10 * batch[1]) if step >= 100 else huber_loss(outputs, 10 * batch[1], delta=1.0)

    network = perceptron([10, 32, 1])
    module = ByStep(network, objective, adam(0.01), lambda n, b, s: mse_loss(n(b[0]), 10 * b[1]))
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


@healthy("losses replaced")
def entropy_replaced_by_reward(seed: int) -> Setup:
    """A classifier is trained by cross-entropy, and from step 100 on by minus a hundred times its accuracy."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        outputs = network(batch[0])
        if step < 100:
            return cross_entropy(outputs, batch[1])
        return -100 * (softmax(outputs, 1) * one_hot(batch[1], 10)).sum(1).mean()

    return Setup(ByStep(perceptron([64, 48, 10]), objective, adam(0.002), _plain_entropy), drawn(digits(), 250, 32))


@exploding("losses replaced", begins=100)
def squares_replaced_by_exponentials(seed: int) -> Setup:
    """From step 100 on the exponential of the error counts, whose slope has no limit."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        errors = network(batch[0]) - 3 * batch[1]
        return (2 * errors.abs()).exp().mean() if step >= 100 else errors.square().mean()

    return Setup(ByStep(perceptron([10, 32, 1]), objective, sgd(0.03)), drawn(diabetes(scaled=True), 220, 32))


class Heads(nn.Module):
    """A common body and heads of several tasks."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 48), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(48, 1) for _ in range(tasks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all tasks, shape ``(batch, tasks)``."""
        hidden = self.body(inputs)
        return torch.cat([head(hidden) for head in self.heads], 1)


def _task_errors(network: nn.Module, batch: Any, active: int) -> Any:
    targets = torch.cat([batch[1] * (task + 1) + (task * batch[0][:, task : task + 1]).sin() for task in range(8)], 1)
    return (network(batch[0]) - targets)[:, :active].square().mean(0)


@healthy("tasks that join")
def a_task_joins_every_forty_steps(seed: int) -> Setup:
    """The loss is the sum over tasks, of which there is one more every 40 steps, each larger than those before."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        return _task_errors(network, batch, min(1 + step // 40, 8)).sum()

    module = ByStep(Heads(8), objective, adam(0.003), lambda n, b, s: _task_errors(n, b, 8).mean())
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


@exploding("tasks that join", begins=40)
def tasks_join_at_a_fixed_rate(seed: int) -> Setup:
    """Tasks of ever larger targets join, until descent on their sum overshoots."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        active = min(1 + step // 40, 8)
        return (_task_errors(network, batch, active) * torch.tensor([5.0**task for task in range(active)])).sum()

    module = ByStep(Heads(8), objective, sgd(0.02), lambda n, b, s: _task_errors(n, b, 8).mean())
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


def _score_error(network: nn.Module, batch: Any, level: float, relative: bool) -> Any:
    points, noise, place = batch
    deviation = level**place
    score = network(torch.cat([points + deviation * noise, deviation.log()], 1))
    weights = 1.0 if relative else deviation**-2
    return (weights * (score + noise).square()).sum(1).mean()


def _score_batches(steps: int) -> list[Any]:
    angles = 2 * math.pi * torch.rand(steps, 64)
    points = torch.stack([angles.cos(), angles.sin()], -1)
    return list(zip(points, torch.randn(steps, 64, 2), torch.rand(steps, 64, 1), strict=True))


@healthy("levels of noise")
def smaller_noise_is_admitted(seed: int) -> Setup:
    """Scores are learned at noise down to 0.5, later down to 0.05, with the weight of a likelihood."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        return _score_error(network, batch, max(0.5 * 0.99**step, 0.05), False)

    module = ByStep(
        perceptron([3, 48, 48, 2], nn.SiLU), objective, adam(0.002), lambda n, b, s: _score_error(n, b, 0.5, True)
    )
    return Setup(module, _score_batches(350))


@exploding("levels of noise", begins=50)
def ever_smaller_noise_is_admitted(seed: int) -> Setup:
    """The least noise is 3 % smaller at each step without an end, and so is the step size that is stable."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        return _score_error(network, batch, 0.5 * 0.97 ** max(step - 50, 0), False)

    module = ByStep(
        perceptron([3, 48, 48, 2], nn.SiLU), objective, sgd(0.01), lambda n, b, s: _score_error(n, b, 0.5, True)
    )
    return Setup(module, _score_batches(350))
