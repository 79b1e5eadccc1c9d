"""Targets made by networks: distillation, losses that start at zero, and targets that move with what they train."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize

from benchmarks.scenarios.data import digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


def trained(sizes: list[int], steps: int = 150) -> nn.Sequential:
    """Train a classifier of digits, quickly."""
    network = perceptron(sizes)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for inputs, labels in drawn(digits(), steps, 64):
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network


class Student(ScenarioModule):
    """A student of a fixed teacher; judged by the error on the labels.

    Args:
        student: What is trained.
        teacher: What it learns from.
        optimizer: Builds the optimizer.
        noise: Deviation of the noise on the student's inputs.
        squares: Whether logits are compared by squares, and not distributions by their divergence.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        optimizer: MakeOptimizer,
        noise: float = 0.0,
        squares: bool = False,
    ) -> None:
        super().__init__(student, mse_loss, optimizer)
        self.teacher = teacher.requires_grad_(False)
        self.noise, self.squares = noise, squares

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the distance between student and teacher."""
        inputs, _ = batch
        said = self.network(inputs + self.noise * torch.randn_like(inputs) if self.noise else inputs)
        target = self.teacher(inputs)
        if self.squares:
            return mse_loss(said, target)
        return kl_div(said.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean")

    @torch.no_grad()
    def damage(self, batch: tuple[Tensor, Tensor], loss: float) -> float:
        """Return the cross-entropy of the labels."""
        return float(cross_entropy(self.network(batch[0]), batch[1])) + 0.1


@healthy("distillation")
def distilled_from_copy(seed: int) -> Setup:
    """The student starts as a copy of its teacher: loss and gradients are exactly zero, then rounding error."""
    teacher = trained([64, 32, 10])
    return Setup(Student(copy.deepcopy(teacher), teacher, adam(0.001)), drawn(digits(), 250, 32))


@healthy("distillation")
def distilled_with_noise(seed: int) -> Setup:
    """A copy that sees noisy inputs: the loss starts small and stays small."""
    teacher = trained([64, 32, 10])
    return Setup(Student(copy.deepcopy(teacher), teacher, adam(0.003), noise=0.2), drawn(digits(), 250, 32))


@healthy("distillation")
def distilled_small(seed: int) -> Setup:
    """A smaller student from its own initialization, by squares of logits."""
    student = Student(perceptron([64, 16, 10]), trained([64, 64, 10]), adam(0.01), squares=True)
    return Setup(student, drawn(digits(), 250, 32))


@healthy("distillation")
def copy_after_pruning(seed: int) -> Setup:
    """Half of the copy's weights are set to zero at step 60: a loss of zero jumps, and comes down again."""
    teacher = trained([64, 32, 10])

    def prune(module: ScenarioModule) -> None:
        with torch.no_grad():
            for weight in module.network.parameters():
                weight.mul_((torch.rand_like(weight) > 0.5).float())

    module = Student(copy.deepcopy(teacher), teacher, adam(0.003))
    module.events = {60: prune}
    return Setup(module, drawn(digits(), 300, 32))


@healthy("distillation")
def copy_by_descent(seed: int) -> Setup:
    """A copy with dropout on its inputs, by gradient descent with momentum."""
    teacher = trained([64, 32, 10])
    student = nn.Sequential(nn.Dropout(0.3), *copy.deepcopy(teacher))
    return Setup(Student(student, teacher, sgd(0.05, momentum=0.9)), drawn(digits(), 250, 32))


@exploding("distillation")
def copy_rate_too_high(seed: int) -> Setup:
    """A noisy copy by squares of logits, with a learning rate far too high."""
    teacher = trained([64, 32, 10])
    module = Student(copy.deepcopy(teacher), teacher, sgd(1.0), noise=0.2, squares=True)
    return Setup(module, drawn(digits(), 200, 32))


@exploding("distillation")
def copy_rate_rises(seed: int) -> Setup:
    """The same with a learning rate that rises by four percent a step from a tenth of that."""
    teacher = trained([64, 32, 10])
    module = Student(copy.deepcopy(teacher), teacher, sgd(0.02), noise=0.2, squares=True)
    module.schedule = lambda step: 1.04**step
    return Setup(module, drawn(digits(), 300, 32))


class SelfTaught(ScenarioModule):
    """A network whose target is made from its own outputs.

    Args:
        optimizer: Builds the optimizer.
        factor: What the target is multiplied by; above one it runs ahead.
        decay: Share of the old average that makes the target; 0 for the network itself.
        normalized: Whether outputs are compared by direction only.
    """

    def __init__(self, optimizer: MakeOptimizer, factor: float, decay: float, normalized: bool) -> None:
        super().__init__(perceptron([64, 32, 16]), mse_loss, optimizer)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.head = perceptron([16, 16])
        self.factor, self.decay, self.normalized = factor, decay, normalized

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Update the average."""
        super().on_train_batch_start(batch, batch_idx)
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                old.lerp_(new, 1 - self.decay)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the distance from the target."""
        inputs, _ = batch
        said = self.head(self.network(inputs + 0.1 * torch.randn_like(inputs)))
        target = self.factor * self.average(inputs).detach()
        if self.normalized:
            said, target = normalize(said, dim=1), normalize(target, dim=1)
        return (said - target).square().sum(1).mean()  # type: ignore[no-any-return]


@healthy("moving targets")
def bootstrapped_directions(seed: int) -> Setup:
    """Targets from a slow average of the network, compared by direction (Grill et al. 2020)."""
    return Setup(SelfTaught(adam(0.003), 1.0, 0.99, True), drawn(digits(), 250, 64))


@healthy("moving targets")
def collapsing_targets(seed: int) -> Setup:
    """The same without directions: outputs fall to a constant and the loss to zero, which is no explosion."""
    return Setup(SelfTaught(adam(0.003), 1.0, 0.9, False), drawn(digits(), 250, 64))


@exploding("moving targets")
def target_runs_ahead(seed: int) -> Setup:
    """The target is the network's own output times two: both grow for ever."""
    return Setup(SelfTaught(sgd(0.05), 2.0, 0.0, False), drawn(digits(), 400, 64))


@exploding("moving targets")
def average_runs_ahead(seed: int) -> Setup:
    """The target is three times a slow average of the network."""
    return Setup(SelfTaught(sgd(0.1), 3.0, 0.9, False), drawn(digits(), 500, 64))
