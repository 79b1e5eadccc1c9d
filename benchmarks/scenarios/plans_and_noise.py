"""Ordinary trainings with plans and noise, and slow explosions of the same kinds; written to count warnings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, perceptron, set_frozen, sgd


def _language(normalised: bool) -> LanguageModel:
    return LanguageModel(text()[1], 24, nn.Sequential(*(Block(24, normalised) for _ in range(2))))


@healthy("restarts on text")
def text_with_warm_restarts(seed: int) -> Setup:
    """A transformer whose learning rate follows a cosine that restarts every 75 steps."""
    module = ScenarioModule(
        _language(True), cross_entropy, adam(0.005), lambda step: 0.5 + 0.5 * math.cos(math.pi * (step % 75) / 75)
    )
    return Setup(module, lines(300, 8, 24))


@exploding("restarts on text")
def text_with_ever_higher_restarts(seed: int) -> Setup:
    """Each restart begins at twice the learning rate of the one before, without normalization."""

    def factor(step: int) -> float:
        return 2.0 ** (step // 30) * (0.55 + 0.45 * math.cos(math.pi * (step % 30) / 30))

    return Setup(ScenarioModule(_language(False), cross_entropy, sgd(0.1), factor), lines(400, 8, 24))


@healthy("layers unfrozen in turn")
def all_layers_unfrozen_later(seed: int) -> Setup:
    """Only the last layer is trained for 120 steps, then all are."""
    network = perceptron([64, 48, 48, 10])
    events = {0: lambda m: set_frozen(m, True), 120: lambda m: set_frozen(m, False)}
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.1, 0.9), events=events), drawn(digits(), 300, 32))


@exploding("layers unfrozen in turn", begins=120)
def all_layers_unfrozen_with_a_rising_rate(seed: int) -> Setup:
    """From the step at which all layers are unfrozen, the learning rate rises by 4 % per step."""
    events = {0: lambda m: set_frozen(m, True), 120: lambda m: set_frozen(m, False)}
    module = ScenarioModule(
        perceptron([10, 48, 48, 1]), mse_loss, sgd(0.05), lambda step: 1.04 ** max(step - 120, 0), events
    )
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


@healthy("lengths by plan")
def ever_longer_lines(seed: int) -> Setup:
    """A transformer is trained on lines of 8 letters, then of 16, 32 and 64."""
    batches = [batch for length in (8, 16, 32, 64) for batch in lines(75, 8, length)]
    return Setup(ScenarioModule(_language(True), cross_entropy, adam(0.005)), batches)


@exploding("lengths by plan", begins=60)
def ever_larger_inputs(seed: int) -> Setup:
    """From step 60 the inputs of a regression grow by 1 % per step."""
    batches = [
        (inputs * 1.01 ** max(step - 60, 0), targets)
        for step, (inputs, targets) in enumerate(drawn(diabetes(scaled=True), 400, 32))
    ]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.1)), batches)


@healthy("data in order")
def digits_sorted_in_blocks(seed: int) -> Setup:
    """Blocks of 20 batches have only digits up to a number, which grows from 1 to 9 and starts again."""
    inputs, labels = digits()
    batches = []
    for block in range(18):
        few = labels <= 1 + block % 9
        batches += drawn((inputs[few], labels[few]), 20, 32)
    return Setup(ScenarioModule(perceptron([64, 48, 10]), cross_entropy, sgd(0.1)), batches)


@exploding("data in order")
def sorted_patients_with_a_creeping_rate(seed: int) -> Setup:
    """Patients in the order of their progress, by a learning rate that rises by 2 % per step."""
    inputs, targets = diabetes(scaled=True)
    order = targets[:, 0].argsort()
    starts = [7 * step % (len(order) - 32) for step in range(500)]
    batches = [(inputs[order[at : at + 32]], targets[order[at : at + 32]]) for at in starts]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01), lambda step: 1.02**step), batches)


@healthy("batches of two")
def two_patients_at_a_time(seed: int) -> Setup:
    """A regression on two samples at a time, whose loss is noise of its own size."""
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01)), drawn(diabetes(scaled=True), 500, 2))


@exploding("batches of two")
def two_patients_just_unstable(seed: int) -> Setup:
    """A linear regression on two samples at a time, by a learning rate just above the largest stable one."""
    return Setup(ScenarioModule(nn.Linear(10, 1), mse_loss, sgd(0.2)), drawn(diabetes(scaled=True), 600, 2))


@healthy("garbage among lines")
def lines_of_garbage_now_and_then(seed: int) -> Setup:
    """Every 60th batch has random letters, whose loss is higher; the training goes on as before."""
    batches = lines(360, 8, 24)
    for step in range(59, 360, 60):
        garbage = torch.randint(text()[1], (8, 25))
        batches[step] = garbage[:, :-1], garbage[:, 1:].flatten()
    return Setup(ScenarioModule(_language(True), cross_entropy, adam(0.005)), batches)


@exploding("garbage among lines", begins=60)
def garbage_takes_over(seed: int) -> Setup:
    """From step 60 the logits of a model of letters are scaled by a temperature that falls by 2 % per step."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return cross_entropy(network(batch[0]) * 1.02 ** max(step - 60, 0), batch[1])

    return Setup(ByStep(_language(False), objective, sgd(0.2)), lines(400, 8, 24))


@healthy("sizes of batches by plan")
def batches_of_several_sizes(seed: int) -> Setup:
    """Batches of 64 samples, then of 8, then of 256, as when the accumulation of gradients changes."""
    batches = [batch for size in (64, 8, 256) for batch in drawn(digits(), 120, size)]
    return Setup(ScenarioModule(perceptron([64, 48, 10]), cross_entropy, adam(0.003)), batches)


@exploding("sizes of batches by plan", begins=100)
def accumulated_without_division(seed: int) -> Setup:
    """From step 100 gradients are summed over ever more batches, without division by their number."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return mse_loss(network(batch[0]), batch[1]) * (1 + max(step - 100, 0) // 8)

    module = ByStep(perceptron([10, 32, 1]), objective, sgd(0.05), lambda n, b, s: mse_loss(n(b[0]), b[1]))
    return Setup(module, drawn(diabetes(scaled=True), 500, 32))


@healthy("rewards of another size")
def rewards_shifted_by_five(seed: int) -> Setup:
    """A policy chooses among digits' labels without a baseline; from step 200 each reward is five higher."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        policy = torch.distributions.Categorical(logits=network(batch[0]))
        chosen = policy.sample()  # type: ignore[no-untyped-call]
        reward = (chosen == batch[1]).float() + (5.0 if step >= 200 else 0.0)
        return -(reward * policy.log_prob(chosen)).mean()  # type: ignore[no-any-return, no-untyped-call]

    def mistakes(network: nn.Module, batch: Any, step: int) -> Tensor:
        return (network(batch[0]).argmax(1) != batch[1]).float().mean()  # type: ignore[no-any-return]

    return Setup(ByStep(perceptron([64, 48, 10]), objective, adam(0.001), mistakes), drawn(digits(), 400, 64))


@exploding("rewards of another size")
def values_from_larger_values(seed: int) -> Setup:
    """The value of each state is learned from a value of the next one that counts 1.3 times as much."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return mse_loss(network(batch[0]), 1.0 + 1.3 * network(batch[1]).detach())

    states = torch.rand(600, 32, 4)
    batches = list(zip(states, states + 0.02 * torch.randn(600, 32, 4), strict=True))
    return Setup(ByStep(perceptron([4, 32, 1]), objective, sgd(0.1)), batches)
