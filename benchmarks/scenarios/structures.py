"""Networks with a loop or a choice inside: experts, state-space layers, differential equations, equilibria, graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from benchmarks.scenarios.data import diabetes, digits, drawn, sunspots, windows
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


class Experts(nn.Module):
    """Sends each row to the expert with the largest logit, and counts how evenly they are used."""

    def __init__(self, width: int, experts: int, scale: float = 1.0) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(perceptron([width, 32, 10]) for _ in range(experts))
        self.scale = scale
        self.uneven = torch.zeros(())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the chosen expert's outputs, times its probability."""
        shares = (self.scale * self.router(inputs)).softmax(1)
        chosen = shares.argmax(1)
        used = one_hot(chosen, shares.shape[1]).float()
        self.uneven = shares.shape[1] * (used.mean(0) * shares.mean(0)).sum()
        outputs = torch.stack([expert(inputs) for expert in self.experts], 1)
        return (outputs * (used * shares)[:, :, None]).sum(1)  # type: ignore[no-any-return]


class Balanced(ScenarioModule):
    """Experts with the loss that balances them (Fedus et al. 2021)."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the classification loss, and a hundredth of the imbalance."""
        inputs, labels = batch
        error = cross_entropy(self.network(inputs), labels)
        uneven: Any = self.network.uneven
        total: Tensor = error + 0.01 * uneven
        return total


@healthy("experts")
def experts(seed: int) -> Setup:
    """Eight experts on digits, of which some see few rows."""
    return Setup(Balanced(Experts(64, 8), cross_entropy, adam(0.005)), drawn(digits(), 250, 32))


@healthy("experts")
def experts_small_batches(seed: int) -> Setup:
    """Four rows a step: most experts get no gradient at most steps."""
    return Setup(Balanced(Experts(64, 8), cross_entropy, sgd(0.05)), drawn(digits(), 300, 4))


@exploding("experts")
def experts_rate_too_high(seed: int) -> Setup:
    """Gradient descent with a learning rate far too high for the experts."""
    return Setup(Balanced(Experts(64, 8), cross_entropy, sgd(30.0)), drawn(digits(), 200, 32))


class StateSpace(nn.Module):
    """A diagonal linear recurrence; stable by its form, or with a free factor per time step."""

    def __init__(self, width: int, free: float | None = None) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, width), nn.Linear(width, 1)
        start = torch.full((width,), free) if free is not None else torch.linspace(-3.0, 0.0, width)
        self.decay = nn.Parameter(start)
        self.is_free = free is not None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output at the last time step."""
        factor = self.decay if self.is_free else (-self.decay.exp()).exp()
        state = torch.zeros(len(inputs), len(self.decay))
        for entered in self.enter(inputs).unbind(1):
            state = factor * state + entered
        outputs: Tensor = self.leave(state)
        return outputs


@healthy("state-space")
def state_space(seed: int) -> Setup:
    """Sunspots with factors that are below one by their form."""
    return Setup(ScenarioModule(StateSpace(16), mse_loss, adam(0.01)), windows(sunspots() / 100, 200, 16, 40))


@healthy("state-space")
def state_space_free(seed: int) -> Setup:
    """Free factors that start well below one, at a small learning rate."""
    return Setup(ScenarioModule(StateSpace(16, 0.7), mse_loss, adam(0.003)), windows(sunspots() / 100, 200, 16, 40))


@exploding("state-space")
def state_space_past_one(seed: int) -> Setup:
    """Free factors just above one, over sixty time steps."""
    return Setup(ScenarioModule(StateSpace(16, 1.1), mse_loss, sgd(0.01)), windows(sunspots() / 100, 150, 16, 60))


@exploding("state-space")
def state_space_drifts_past_one(seed: int) -> Setup:
    """Free factors that momentum carries past one."""
    module = ScenarioModule(StateSpace(16, 0.95), mse_loss, sgd(0.003, momentum=0.95))
    return Setup(module, windows(sunspots() / 100, 250, 16, 60))


class Trajectory(nn.Module):
    """A differential equation with a learned slope, by Euler's method."""

    def __init__(self, width: int, steps: int, length: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.slope = perceptron([width, 32, width], activation)
        self.steps, self.length = steps, length

    def forward(self, state: Tensor) -> Tensor:
        """Return the state at the end."""
        for _ in range(self.steps):
            state = state + self.length / self.steps * self.slope(state)
        return state


def _rotations(steps: int, size: int) -> list[Any]:
    states = torch.randn(steps, size, 4)
    return [(state, state.roll(1, 1)) for state in states]


@healthy("differential equations")
def trajectory(seed: int) -> Setup:
    """A slope with tanh units, over one unit of time."""
    return Setup(ScenarioModule(Trajectory(4, 10, 1.0, nn.Tanh), mse_loss, adam(0.01)), _rotations(200, 32))


@healthy("differential equations")
def trajectory_by_descent(seed: int) -> Setup:
    """Gradient descent with momentum."""
    module = ScenarioModule(Trajectory(4, 10, 1.0, nn.Tanh), mse_loss, sgd(0.05, momentum=0.9))
    return Setup(module, _rotations(200, 32))


@exploding("differential equations")
def trajectory_too_long(seed: int) -> Setup:
    """Rectified units over twelve units of time: errors are amplified along the way."""
    return Setup(ScenarioModule(Trajectory(4, 24, 12.0, nn.ReLU), mse_loss, sgd(0.05)), _rotations(200, 32))


@exploding("differential equations")
def trajectory_rate_too_high(seed: int) -> Setup:
    """One unit of time, at a learning rate of three."""
    return Setup(ScenarioModule(Trajectory(4, 10, 1.0, nn.ReLU), mse_loss, sgd(3.0)), _rotations(200, 32))


class Equilibrium(nn.Module):
    """A fixed point of ``tanh(A h + B x)`` or of its linear form, by iteration."""

    def __init__(self, inputs: int, width: int, outputs: int, gain: float, linear: bool = False) -> None:
        super().__init__()
        self.inner, self.enter, self.head = nn.Linear(width, width), nn.Linear(inputs, width), nn.Linear(width, outputs)
        nn.init.normal_(self.inner.weight, std=gain / width**0.5)
        self.linear = linear

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs after twenty iterations."""
        entered = self.enter(inputs)
        hidden = torch.zeros_like(entered)
        for _ in range(20):
            hidden = self.inner(hidden) + entered
            hidden = hidden if self.linear else hidden.tanh()
        outputs: Tensor = self.head(hidden)
        return outputs


@healthy("equilibria")
def equilibrium(seed: int) -> Setup:
    """A contraction, by Adam."""
    return Setup(ScenarioModule(Equilibrium(64, 32, 10, 0.5), cross_entropy, adam(0.003)), drawn(digits(), 200, 32))


@healthy("equilibria")
def equilibrium_linear(seed: int) -> Setup:
    """A linear contraction, by gradient descent."""
    module = ScenarioModule(Equilibrium(10, 16, 1, 0.3, linear=True), mse_loss, sgd(0.01))
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


@exploding("equilibria")
def equilibrium_lost(seed: int) -> Setup:
    """A linear map at the edge of contraction, which learning makes an expansion."""
    module = ScenarioModule(Equilibrium(10, 16, 1, 0.9, linear=True), mse_loss, sgd(0.05))
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


@exploding("equilibria")
def equilibrium_by_adam(seed: int) -> Setup:
    """A linear map that starts as a contraction, by Adam at a high learning rate."""
    module = ScenarioModule(Equilibrium(10, 16, 1, 0.5, linear=True), mse_loss, adam(0.1))
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


class Graph(nn.Module):
    """Messages between neighbours on a fixed random graph, by sum or by mean, over some layers."""

    def __init__(self, nodes: int, layers: int, mean: bool) -> None:
        super().__init__()
        links = (torch.rand(nodes, nodes) < 8 / nodes).float() + torch.eye(nodes)
        self.register_buffer("links", links / links.sum(1, keepdim=True) if mean else links)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one output a node; inputs are of shape ``(batch, nodes, 8)``."""
        for layer in self.layers:
            inputs = layer(self.links @ inputs).relu()  # type: ignore[operator]
        outputs: Tensor = self.head(inputs)
        return outputs


def _graphs(steps: int, nodes: int) -> list[Any]:
    inputs = torch.randn(steps, 4, nodes, 8)
    return [(one, one[..., :1].abs()) for one in inputs]


@healthy("graphs")
def graph_mean(seed: int) -> Setup:
    """Four layers of means."""
    return Setup(ScenarioModule(Graph(30, 4, mean=True), mse_loss, adam(0.005)), _graphs(200, 30))


@healthy("graphs")
def graph_sum(seed: int) -> Setup:
    """Two layers of sums: the loss starts high and comes down."""
    return Setup(ScenarioModule(Graph(30, 2, mean=False), mse_loss, adam(0.003)), _graphs(200, 30))


@exploding("graphs")
def graph_sum_too_deep(seed: int) -> Setup:
    """Six layers of sums over ten neighbours, by gradient descent."""
    return Setup(ScenarioModule(Graph(30, 6, mean=False), mse_loss, sgd(0.1)), _graphs(150, 30))


@exploding("graphs")
def graph_rate_rises(seed: int) -> Setup:
    """Three layers of sums, with a learning rate that rises by five percent a step."""
    module = ScenarioModule(Graph(30, 3, mean=False), mse_loss, sgd(2e-5), lambda step: 1.05**step)
    return Setup(module, _graphs(300, 30))
