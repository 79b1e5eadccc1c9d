"""Runs that explode by slips in the code around the network: signs, units, groups, schedules and unrolled loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Optimizer

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, ring, text
from benchmarks.scenarios.family import Setup, exploding
from benchmarks.scenarios.module import Adversaries, Block, LanguageModel, ScenarioModule, adam, perceptron, sgd


@exploding("no floor")
def ascent(seed: int) -> Setup:
    """The gradient is climbed in place of descended, in a regression of digits' classes."""

    def turned(outputs: Tensor, targets: Tensor) -> Tensor:
        error = cross_entropy(outputs, targets)
        return error.detach() - (error - error.detach())

    return Setup(ScenarioModule(perceptron([64, 32, 10]), turned, sgd(0.1)), drawn(digits(), 300, 32))


@exploding("regression", begins=50)
def inputs_drift(seed: int) -> Setup:
    """A sensor drifts: from step 50 on inputs and targets grow by five percent a step."""
    batches = drawn(diabetes(scaled=True), 300, 32)
    scales = [1.05 ** max(0, step - 50) for step in range(len(batches))]
    drifting = [(scale * inputs, scale * targets) for scale, (inputs, targets) in zip(scales, batches, strict=True)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02)), drifting)


@exploding("slips")
def momentum_above_one(seed: int) -> Setup:
    """Momentum was typed as 1.02: what the optimizer remembers grows by itself."""
    module = ScenarioModule(perceptron([64, 32, 10], nn.Tanh), cross_entropy, sgd(0.01, momentum=1.02))
    return Setup(module, drawn(digits(), 400, 32))


class _Amplified(torch.autograd.Function):
    """Returns its input as it is, and its gradient multiplied."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class Amplifier(nn.Module):
    """A linear layer whose output's gradient is multiplied by a factor that grows from step to step."""

    def __init__(self, width: int, growth: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.growth = growth
        self.steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the linear layer's output."""
        self.steps += self.training and torch.is_grad_enabled()
        outputs: Tensor = _Amplified.apply(self.inner(inputs), self.growth**self.steps)  # type: ignore[no-untyped-call]
        return outputs


@exploding("slips", where="network.2")
def gradient_amplifier(seed: int) -> Setup:
    """A hand-written backward pass multiplies the gradient by a little more at each step."""
    network = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(), Amplifier(32, 1.06), nn.LeakyReLU(), nn.Linear(32, 10))
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.05)), drawn(digits(), 300, 32))


@exploding("adversarial", where="generator")
def generator_too_fast(seed: int) -> Setup:
    """An adversarial pair without a penalty, whose generator was given a learning rate of one."""
    return Setup(Adversaries(0.0005, 1.0, limited=False), ring(300, 64))


@exploding("regression")
def clipped_and_lost(seed: int) -> Setup:
    """The trainer clips the gradients to one, at a learning rate at which that is no help."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(30.0))
    return Setup(module, drawn(diabetes(scaled=True), 200, 32), {"gradient_clip_val": 1.0})


@exploding("language", where="network.embedding")
def embedding_too_fast(seed: int) -> Setup:
    """A language model whose embedding was given a learning rate a million times that of the rest."""
    _, letters = text()
    network = LanguageModel(letters, 32, perceptron([32, 64, 32]))

    def optimizer(parameters: Any) -> Optimizer:
        rest = [*network.body.parameters(), *network.head.parameters()]
        return SGD([{"params": [*network.embedding.parameters()], "lr": 1e5}, {"params": rest, "lr": 0.1}])

    return Setup(ScenarioModule(network, cross_entropy, optimizer), lines(200, 8, 16))


class Unrolled(nn.Module):
    """A learned step of a dynamical system, taken many times over."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.step = perceptron([width, 32, width])
        self.times = times

    def forward(self, state: Tensor) -> Tensor:
        """Return the last state."""
        for _ in range(self.times):
            state = state + self.step(state)
        return state


@exploding("recurrent", where="network.step")
def unrolled_dynamics(seed: int) -> Setup:
    """A learned dynamical system that is unrolled for eight steps, and amplifies its own errors."""
    states = torch.randn(150, 32, 4)
    batches = [(state, state.roll(1, 1)) for state in states]
    return Setup(ScenarioModule(Unrolled(4, 8), mse_loss, sgd(0.2)), batches)


@exploding("curvature")
def matrix_factors(seed: int) -> Setup:
    """A large table is factorised by gradient descent with a learning rate that its largest entries do not bear."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(0.5 * torch.randn(40, 8))
            self.columns = nn.Parameter(0.5 * torch.randn(40, 8))

        def forward(self, inputs: Tensor) -> Tensor:
            table: Tensor = self.rows @ self.columns.T
            return table

    table = 3 * torch.randn(40, 6) @ torch.randn(6, 40)
    return Setup(ScenarioModule(Factors(), mse_loss, sgd(8.0)), [(table, table)] * 300)


@exploding("schedule")
def transformer_rate_creeps(seed: int) -> Setup:
    """A transformer without normalisation, whose learning rate creeps up by three percent a step."""
    _, letters = text()
    body = nn.Sequential(*(Block(32, normalised=False) for _ in range(2)))
    module = ScenarioModule(LanguageModel(letters, 32, body), cross_entropy, adam(0.002), lambda step: 1.03**step)
    return Setup(module, lines(300, 8, 16))
