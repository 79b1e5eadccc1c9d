"""Runs in which something changes according to a plan: the rate, the classes, the weights of losses, the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


def _one_cycle(step: int, steps: int = 250, rise: float = 0.3) -> float:
    """Return a rate that rises from 4 % to 1 and falls to nothing, both by a cosine."""
    turn = rise * steps
    if step < turn:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / turn))
    return 0.5 * (1 + math.cos(math.pi * (step - turn) / (steps - turn)))


@healthy("one cycle")
def one_cycle(seed: int) -> Setup:
    """A learning rate that rises far and falls to nothing, in descent with momentum."""
    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.3, momentum=0.9), _one_cycle)
    return Setup(module, drawn(digits(), 250, 64))


@exploding("one cycle")
def one_cycle_too_high(seed: int) -> Setup:
    """The peak of the learning rate is far above what the network takes."""
    network = perceptron([10, 32, 32, 1])
    module = ScenarioModule(network, mse_loss, sgd(3.0, momentum=0.9), _one_cycle)
    return Setup(module, drawn(diabetes(scaled=True), 250, 64))


def _classes(steps: int, pairs: Sequence[Sequence[int]]) -> list[Batch]:
    inputs, labels = digits()
    batches = []
    for some in pairs:
        rows = torch.isin(labels, torch.tensor(some))
        batches += drawn((inputs[rows], labels[rows]), steps, 32)
    return batches


@healthy("classes in turn")
def two_classes_at_a_time(seed: int) -> Setup:
    """Two new classes every fifty steps and none of the old ones: the loss starts anew far above its first value."""
    batches = _classes(50, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)])
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.1)), batches)


@exploding("classes in turn")
def new_classes_at_a_high_rate(seed: int) -> Setup:
    """Two classes at a time, and from the third pair on at a rate a hundred times higher."""
    batches = _classes(60, [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7), (5, 6, 7, 8, 9), range(10)])
    network = perceptron([64, 64, 64, 10])
    schedule = lambda step: 1.0 if step < 120 else 100.0  # noqa: E731
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.1, momentum=0.9), schedule), batches)


class Weighted(ScenarioModule):
    """Classifies, and reconstructs the inputs with a weight that follows a plan.

    Args:
        optimizer: Builds the optimizer.
        steps: Step at which each weight begins to be used, and the weight.
    """

    def __init__(self, optimizer: MakeOptimizer, steps: dict[int, float]) -> None:
        super().__init__(perceptron([64, 48, 74]), cross_entropy, optimizer)
        self.weights = {**{0: 0.0}, **steps}
        self.weight = self.weights[0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Change the weight where that is due."""
        self.weight = self.weights.get(batch_idx, self.weight)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum."""
        inputs, labels = batch
        outputs = self.network(inputs)
        return cross_entropy(outputs[:, :10], labels) + self.weight * mse_loss(outputs[:, 10:], inputs)


@healthy("weights of losses by plan")
def weight_raised_a_hundredfold(seed: int) -> Setup:
    """The second loss counts a hundred times as much from step 100 on, which the rate takes well."""
    return Setup(Weighted(sgd(0.05), {0: 1.0, 100: 100.0}), drawn(digits(), 300, 32))


@healthy("weights of losses by plan")
def second_loss_joins(seed: int) -> Setup:
    """A second, larger loss joins at step 80, with Adam."""
    return Setup(Weighted(adam(0.003), {80: 30.0}), drawn(digits(), 260, 32))


@exploding("weights of losses by plan")
def weight_raised_too_far(seed: int) -> Setup:
    """The second loss counts ten times as much from step 100 on, at a rate chosen for the first weight."""
    return Setup(Weighted(sgd(1.0, momentum=0.9), {0: 10.0, 100: 100.0}), drawn(digits(), 300, 32))


@healthy("batch sizes")
def batches_shrink(seed: int) -> Setup:
    """Batches of 128, then 32, then 8, at a rate that all of them take."""
    batches = [*drawn(digits(), 100, 128), *drawn(digits(), 100, 32), *drawn(digits(), 100, 8)]
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.05, momentum=0.9)), batches)


@exploding("batch sizes")
def batches_of_one_at_the_old_rate(seed: int) -> Setup:
    """Batches of 64 up to step 150, then single samples, at the rate of the large batches."""
    inputs, targets = diabetes(scaled=True)
    batches = [*drawn((inputs, targets), 150, 64), *drawn((inputs, targets), 250, 1)]
    return Setup(ScenarioModule(perceptron([10, 64, 1]), mse_loss, sgd(0.12, momentum=0.9)), batches)


class Federated(ScenarioModule):
    """Local steps on one client's data; every ten steps the weights move from the last common ones by a factor.

    Args:
        network: What is trained.
        optimizer: Builds the optimizer.
        factor: Length of the common move over the local one.
    """

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer, factor: float) -> None:
        super().__init__(network, cross_entropy, optimizer)
        self.factor = factor
        self.common: list[Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Move the common weights every ten steps."""
        if batch_idx % 10:
            return
        with torch.no_grad():
            for common, one in zip(self.common, self.network.parameters(), strict=bool(self.common)):
                one.copy_(common + self.factor * (one - common))
            self.common = [one.clone() for one in self.network.parameters()]


@healthy("local steps")
def local_steps_averaged(seed: int) -> Setup:
    """Ten local steps on three classes each, of which half the way is taken."""
    batches = [b for turn in range(30) for b in _classes(10, [[(turn + k) % 10 for k in range(3)]])]
    return Setup(Federated(perceptron([64, 64, 10]), sgd(0.1), 0.5), batches)


@exploding("local steps")
def local_steps_extrapolated(seed: int) -> Setup:
    """Ten local steps with momentum, and then nine times that way: more than any curvature takes at this rate."""
    return Setup(Federated(perceptron([64, 64, 10]), sgd(0.3, momentum=0.9), 9.0), drawn(digits(), 300, 32))
