"""What comes and goes: seasons, tasks and optimizers in turn, rare rewards, spikes that pass, warm-up, late insight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, poisson_nll_loss

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, MakeOptimizer, ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected, squared


@healthy("sorted data")
def season_from_its_calmest(seed: int) -> Setup:
    """Noise that grows and falls within 150 steps, and is smallest at the start; judged by the errors without it."""
    batches = []
    for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 450, 16)):
        noise = 0.3 + 1.5 * (1 - math.cos(2 * math.pi * step / 150))
        batches.append((x, y + noise * torch.randn_like(y), y))

    def clean(n: nn.Module, b: Any) -> Tensor:
        return mse_loss(n(b[0]), b[2])

    return Setup(Objected(perceptron([10, 16, 1]), squared, sgd(0.01), clean), batches)


@healthy("sorted data")
def counts_of_day_and_night(seed: int) -> Setup:
    """Counts with a daily period that starts at night; the hour is an input."""
    batches = []
    for step in range(400):
        hour = torch.full((16, 1), math.sin(2 * math.pi * step / 80 - math.pi / 2))
        inputs = torch.cat([torch.randn(16, 4), hour], 1)
        batches.append((inputs, torch.poisson((1 + 1.5 * hour + 0.3 * inputs[:, :1]).exp())))
    return Setup(ScenarioModule(perceptron([5, 24, 1]), poisson_nll_loss, adam(0.005)), batches)


@healthy("sorted data")
def easy_and_hard_in_turn(seed: int) -> Setup:
    """Forty steps of what is easy, then forty of what has errors of ten times the size."""
    batches = drawn(diabetes(scaled=True), 400, 16)
    hard = [0.2 if step // 40 % 2 == 0 else 0.7 for step in range(400)]
    return Setup(
        ScenarioModule(perceptron([10, 24, 1]), mse_loss, adam(0.003)),
        [(x, hard[step] * y) for step, (x, y) in enumerate(batches)],
    )


@healthy("sorted data")
def three_tasks_of_any_size(seed: int) -> Setup:
    """Three heads in turn, whose losses are a thousandth, one and a thousand."""
    network = nn.Sequential(perceptron([10, 32]), nn.Linear(32, 3))
    sizes = (1e-3, 1.0, 1e3)

    def objective(n: nn.Module, b: Any) -> Tensor:
        outputs = n(b[0])[:, b[2] : b[2] + 1]
        return sizes[b[2]] * mse_loss(outputs, b[1])

    batches = [(*batch, step % 3) for step, batch in enumerate(drawn(diabetes(scaled=True), 360, 16))]
    return Setup(Objected(network, objective, adam(0.003)), batches)


class Turns(ScenarioModule):
    """Parts of a network with an optimizer each, of which one steps in each batch, by hand.

    Args:
        parts: The parts.
        objective: The loss of all parts, a batch and the number of the part that steps.
        make: Builders of the optimizers.
        every: Number of batches until the next part has its turn.
    """

    def __init__(
        self,
        parts: nn.ModuleList,
        objective: Callable[[nn.ModuleList, Any, int], Tensor],
        make: Sequence[MakeOptimizer],
        every: int = 1,
    ) -> None:
        super().__init__(parts, mse_loss, make[0])
        self.parts, self.objective, self.make, self.every = parts, objective, make, every
        self.automatic_optimization = False

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the first part."""
        return self.objective(self.parts, batch, 0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Step the part whose turn it is."""
        place = batch_idx // self.every % len(self.parts)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        loss = self.objective(self.parts, batch, place)
        optimizers[place].zero_grad()
        self.manual_backward(loss)
        optimizers[place].step()
        self.last_loss = self.last_damage = float(loss.detach())
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Build an optimizer for each part."""
        return [make(part.parameters()) for make, part in zip(self.make, self.parts, strict=True)]


class Factor(nn.Module):
    """A matrix of weights."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * 0.3)


def _product(parts: nn.ModuleList, batch: Any, place: int) -> Tensor:
    left, right = (part.get_parameter("weight") for part in parts)
    rows, columns, values = batch
    return ((left[rows] * right[columns]).sum(1) - values).square().mean()  # type: ignore[no-any-return]


def _entries(steps: int, size: int) -> list[Any]:
    truth = torch.randn(30, 3) @ torch.randn(3, 30)
    places = torch.randint(30, (steps, 2, size))
    return [(rows, columns, truth[rows, columns]) for rows, columns in places]


@healthy("parts in turn")
def factors_in_turn(seed: int) -> Setup:
    """Two factors of a matrix, ten steps of each in turn."""
    parts = nn.ModuleList([Factor(30, 4), Factor(30, 4)])
    return Setup(Turns(parts, _product, [adam(0.02), adam(0.02)], every=10), _entries(400, 64))


@exploding("parts in turn")
def one_factor_too_fast(seed: int) -> Setup:
    """The second of the two steps by gradient descent, at a rate that rises by five percent a step."""

    class Rising(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] *= 1.05
            return super().step(closure)

    parts = nn.ModuleList([Factor(30, 4), Factor(30, 4)])
    return Setup(Turns(parts, _product, [sgd(0.05), lambda p: Rising(p, lr=0.3)]), _entries(500, 64))


def _own(parts: nn.ModuleList, batch: Any, place: int) -> Tensor:
    return mse_loss(parts[place](batch[0]), batch[1])


@exploding("parts in turn")
def third_of_three_diverges(seed: int) -> Setup:
    """Three networks of their own in turn, of which the third has too high a rate."""
    parts = nn.ModuleList([perceptron([10, 24, 1]) for _ in range(3)])
    return Setup(Turns(parts, _own, [sgd(0.02), sgd(0.02), sgd(1.5)]), drawn(diabetes(scaled=True), 300, 32))


def _values(parts: nn.ModuleList, batch: Any, place: int) -> Tensor:
    states, draws, following, rewards = batch
    values = parts[0](states)
    if place == 0:
        with torch.no_grad():
            wanted = rewards + 0.9 * parts[0](following)
        return mse_loss(values, wanted)
    chances = parts[1](states).log_softmax(1)
    actions = (chances.detach().exp().cumsum(1) < draws).sum(1, keepdim=True).clamp(max=3)
    advantage = (rewards * (actions == 0) - values).detach()
    return -(advantage * chances.gather(1, actions)).mean()  # type: ignore[no-any-return]


@healthy("values")
def actor_and_critic_of_rare_rewards(seed: int) -> Setup:
    """One step in sixty has a reward; the critic's loss is next to zero in between."""
    batches = [
        (torch.randn(16, 6), torch.rand(16, 1), torch.randn(16, 6), 5.0 * (torch.rand(16, 1) < 1 / 60))
        for _ in range(400)
    ]
    parts = nn.ModuleList([perceptron([6, 24, 1]), perceptron([6, 24, 4])])
    return Setup(Turns(parts, _values, [adam(0.002), adam(0.002)]), batches)


@healthy("values")
def policy_of_rare_rewards(seed: int) -> Setup:
    """A policy whose loss is exactly zero at most steps, for there is no reward."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        return -(b[2] * n(b[0]).log_softmax(1).gather(1, b[1])).mean()  # type: ignore[no-any-return]

    batches = [(torch.randn(8, 6), torch.randint(4, (8, 1)), 3.0 * (torch.rand(8, 1) < 0.03)) for _ in range(350)]
    return Setup(Objected(perceptron([6, 24, 4], nn.Tanh), objective, adam(0.003)), batches)


@healthy("bad batches")
def spikes_every_sixty_steps(seed: int) -> Setup:
    """Every sixty steps a batch has targets thirty times as large, by Adam."""
    batches = drawn(diabetes(scaled=True), 400, 16)
    batches = [(x, 30 * y if step % 60 == 59 else y) for step, (x, y) in enumerate(batches)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, adam(0.003)), batches)


@healthy("bad batches")
def five_bad_batches(seed: int) -> Setup:
    """Five batches in a row have wrong labels and inputs of twice the size; then all is as before."""
    batches = drawn(digits(), 300, 32)
    batches = [(2 * x, 9 - y) if 150 <= step < 155 else (x, y) for step, (x, y) in enumerate(batches)]
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.2, momentum=0.9)), batches)


@healthy("schedule")
def warmup_from_exactly_zero(seed: int) -> Setup:
    """A learning rate of exactly zero at first, then up to a high one within 60 steps, by Adam."""
    network = nn.Sequential(
        nn.Unflatten(1, (8, 8)), nn.Linear(8, 24), Block(24), Block(24), nn.Flatten(), nn.Linear(192, 10)
    )
    module = ScenarioModule(network, cross_entropy, adam(0.01), schedule=lambda step: min(step / 60, 1.0))
    return Setup(module, drawn(digits(), 260, 16))


@healthy("schedule")
def forty_steps_with_a_hump(seed: int) -> Setup:
    """A run of forty steps, whose loss rises before it falls."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(0.2, momentum=0.9))
    return Setup(module, drawn(digits(), 40, 16))


@healthy("classification")
def modular_sums(seed: int) -> Setup:
    """Sums modulo 13 by Adam at a high rate with decay, over half of the pairs again and again (Power et al. 2022)."""
    pairs = torch.cartesian_prod(torch.arange(13), torch.arange(13))
    pairs = pairs[torch.randperm(169)[:90]]
    network = nn.Sequential(nn.Embedding(13, 24), nn.Flatten(), perceptron([48, 96, 13]))
    optimizer = adam(0.01, weight_decay=1e-4)
    return Setup(ScenarioModule(network, cross_entropy, optimizer), [(pairs, pairs.sum(1) % 13)] * 500)
