"""Faults that come late or show in one place only: after long calm, at a resume, along flat directions, near zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.by_step import ByStep, error
from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, perceptron, scale_weights, sgd


def _only(module: ScenarioModule) -> torch.optim.Optimizer:
    optimizer = module.optimizers()
    assert not isinstance(optimizer, list)
    return optimizer.optimizer


@healthy("long calm")
def new_targets_after_a_thousand_steps(seed: int) -> Setup:
    """After a thousand calm steps the targets have the opposite sign."""
    batches = [(x, -y if step >= 1000 else y) for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 1300, 32))]
    return Setup(ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.05)), batches)


@exploding("long calm", begins=1000)
def rate_creeps_after_a_thousand_steps(seed: int) -> Setup:
    """After a thousand calm steps the rate rises by 3 % at each step."""
    module = ScenarioModule(
        perceptron([10, 16, 1]), mse_loss, sgd(0.05), schedule=lambda step: 1.03 ** max(step - 1000, 0)
    )
    return Setup(module, drawn(diabetes(scaled=True), 1300, 32))


@exploding("long calm", begins=1000)
def decay_turns_its_sign_after_a_thousand_steps(seed: int) -> Setup:
    """After a thousand calm steps the decay of the weights has the wrong sign, and they grow slowly."""

    def turn(module: ScenarioModule) -> None:
        for group in _only(module).param_groups:
            group["weight_decay"] = -2.0

    module = ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.05), events={1000: turn})
    return Setup(module, drawn(diabetes(scaled=True), 1400, 32))


@healthy("resumed anew")
def optimizer_cleared_at_a_resume(seed: int) -> Setup:
    """At step 150 the state of Adam is lost, and its first steps are as large as at the start."""
    module = ScenarioModule(
        perceptron([64, 64, 64, 10]), cross_entropy, adam(0.003), events={150: lambda m: _only(m).state.clear()}
    )
    return Setup(module, drawn(digits(), 300, 32))


@exploding("resumed anew", begins=150)
def peak_rate_at_a_resume(seed: int) -> Setup:
    """At step 150 the state of Adam is lost and its rate is a thousand times higher, in a transformer."""

    def resume(module: ScenarioModule) -> None:
        _only(module).state.clear()
        for group in _only(module).param_groups:
            group["lr"] = 3.0

    _, letters = text()
    network = LanguageModel(letters, 24, nn.Sequential(*(Block(24, normalised=False) for _ in range(3))))
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003), events={150: resume}), lines(250, 8, 24))


@exploding("resumed anew", begins=100)
def one_layer_restored_in_another_unit(seed: int) -> Setup:
    """At step 100 one layer comes back twenty times as large, and descent does not recover."""
    module = ScenarioModule(
        perceptron([10, 32, 32, 1]),
        mse_loss,
        sgd(0.05),
        events={100: lambda m: scale_weights(m.network.get_submodule("2"), 20.0)},
    )
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


class Shifted(nn.Module):
    """A classifier whose logits have a common part, which a softmax does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron([64, 32, 10])
        self.common = nn.Parameter(torch.ones(8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.body(inputs) + self.common.sum()
        return logits


@exploding("flat directions", begins=40)
def common_part_of_logits_grows(seed: int) -> Setup:
    """A penalty of the wrong sign makes a direction grow that the loss of the task does not see."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        common = network.get_parameter("common")
        penalty = -1e-4 * common.square().sum() if step >= 40 else 0.0
        return cross_entropy(network(batch[0]), batch[1]) + penalty

    network = Shifted()
    module = ByStep(network, objective, sgd(300.0), lambda n, b, s: torch.tensor(3.0), schedule=lambda step: 1.0)
    module.optimizer = lambda parameters: torch.optim.SGD(
        [
            {"params": list(network.body.parameters()), "lr": 0.1},
            {"params": [network.common], "lr": 300.0},
        ]
    )
    return Setup(module, drawn(digits(), 400, 32))


@healthy("flat directions")
def common_part_of_logits_wanders(seed: int) -> Setup:
    """Noise moves the weights along a direction that the loss does not see."""

    def move(module: ScenarioModule) -> None:
        with torch.no_grad():
            module.network.get_parameter("common").add_(0.05 * torch.randn(8))

    events = dict.fromkeys(range(20, 300), move)
    return Setup(ScenarioModule(Shifted(), cross_entropy, sgd(0.1), events=events), drawn(digits(), 300, 32))


def _copy_batches(steps: int) -> list[Any]:
    return [(x, 0.5 * x[:, :1] + 1e-3 * torch.randn(16, 1)) for x in torch.randn(steps, 16, 4)]


@healthy("solved from the start")
def solved_problem_with_noise(seed: int) -> Setup:
    """The weights solve the problem before the first step: the loss is a millionth, and stays noise."""
    network = nn.Linear(4, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5, 0, 0, 0]]))
        network.bias.zero_()
    return Setup(ScenarioModule(network, mse_loss, adam(1e-4)), _copy_batches(300))


@exploding("solved from the start")
def solved_problem_left_slowly(seed: int) -> Setup:
    """The weights solve the problem at first, and descent that is just unstable leaves the solution slowly."""
    network = nn.Linear(4, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5, 0, 0, 0]]))
        network.bias.zero_()
    return Setup(ScenarioModule(network, mse_loss, sgd(0.85)), _copy_batches(500))


@healthy("momentum by plan")
def momentum_cycles(seed: int) -> Setup:
    """Momentum goes between 0.85 and 0.95, against the rate."""

    def cycle(step: int) -> float:
        return 1.05 - 0.95 * math.cos(2 * math.pi * step / 120)

    def turn(module: ScenarioModule) -> None:
        for group in _only(module).param_groups:
            group["momentum"] = 0.95 - 0.05 * (group["lr"] / 0.04)

    module = ScenarioModule(
        perceptron([64, 48, 10]), cross_entropy, sgd(0.02, 0.95), cycle, dict.fromkeys(range(360), turn)
    )
    return Setup(module, drawn(digits(), 360, 32))


@exploding("momentum by plan", begins=100)
def momentum_raised_past_one(seed: int) -> Setup:
    """Momentum rises by a thousandth at each step, and does not stop at one."""

    def turn(module: ScenarioModule) -> None:
        for group in _only(module).param_groups:
            group["momentum"] += 0.001

    module = ScenarioModule(
        perceptron([10, 32, 1]), mse_loss, sgd(0.01, 0.9), events=dict.fromkeys(range(100, 500), turn)
    )
    return Setup(module, drawn(diabetes(scaled=True), 500, 32))


@healthy("gradients scaled by hand")
def scale_changed_by_hand(seed: int) -> Setup:
    """The loss is multiplied by 1024 from step 120 on, as a scale is introduced by hand, and Adam does not mind."""
    module = ByStep(
        perceptron([10, 32, 1]),
        lambda n, b, s: error(n, b, s) * (1024 if s >= 120 else 1),
        adam(0.003),
        error,
    )
    return Setup(module, drawn(diabetes(scaled=True), 260, 32))


@exploding("gradients scaled by hand", begins=120)
def scale_of_descent_forgotten(seed: int) -> Setup:
    """The same with descent, whose rate would have to be divided by it."""
    module = ByStep(
        perceptron([10, 32, 1]),
        lambda n, b, s: error(n, b, s) * (1024 if s >= 120 else 1),
        sgd(0.03),
        error,
    )
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


class Rollout(nn.Module):
    """A model of a system that is applied to its own outputs."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.change = layers

    def forward(self, state: Tensor, steps: int) -> Tensor:
        """Return the states that follow, shape ``(batch, steps, size)``."""
        states = []
        for _ in range(steps):
            state = state + self.change(state)
            states.append(state)
        return torch.stack(states, 1)


def _swings(steps: int) -> list[Any]:
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3], [-0.3, -0.02]]))
    batches = []
    for state in torch.randn(steps, 16, 2):
        states = [state]
        for _ in range(40):
            states.append(states[-1] @ turn)
        batches.append((states[0], torch.stack(states[1:], 1)))
    return batches


def _rollout_error(network: nn.Module, batch: Any, horizon: int) -> Any:
    return (network(batch[0], horizon) - batch[1][:, :horizon]).square().sum((1, 2)).mean()


@healthy("growing horizons")
def rollouts_of_a_growing_horizon(seed: int) -> Setup:
    """A model of a pendulum is applied to its own outputs over 1 to 30 steps, with the errors summed."""
    module = ByStep(
        Rollout(perceptron([2, 24, 2], nn.Tanh)),
        lambda n, b, s: _rollout_error(n, b, min(1 + s // 10, 30)),
        adam(0.003),
        lambda n, b, s: 1 + _rollout_error(n, b, 1),
    )
    return Setup(module, _swings(380))


@exploding("growing horizons")
def rollouts_too_long_for_the_rate(seed: int) -> Setup:
    """The horizon grows while a linear model is trained by descent at a rate that fits short ones."""
    module = ByStep(
        Rollout(nn.Linear(2, 2)),
        lambda n, b, s: _rollout_error(n, b, min(1 + s // 10, 40)),
        sgd(0.02),
        lambda n, b, s: 1 + _rollout_error(n, b, 1),
    )
    return Setup(module, _swings(500))
