"""Models that act, forecast, or work on their own outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Adagrad, AdamW, RMSprop

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, sunspots
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def _held(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Return outputs of a network whose weights get no gradient."""
    outputs: Tensor = functional_call(network, {name: one.detach() for name, one in network.named_parameters()}, inputs)
    return outputs


class _Pusher(nn.Module):
    """A policy that pushes a mass, a critic of it, and a slow copy of the two."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.policy = nn.Sequential(perceptron([2, 32, 1]), nn.Tanh() if bounded else nn.Identity())
        self.critic = perceptron([3, 32, 32, 1])
        self.slow = nn.ModuleList([perceptron([2, 32, 1]), perceptron([3, 32, 32, 1])]).requires_grad_(False)


def _pushed(discount: float, slow: bool) -> tuple[Any, Any]:
    """Return the objective of policy and critic, and the error of the critic."""

    def critic_error(network: nn.Module, batch: Any, step: int) -> Tensor:
        assert isinstance(network, _Pusher)
        (states, pushes, rewards), following = batch[0].split([2, 1, 1], 1), batch[1]
        with torch.no_grad():
            policy, critic = network.slow if slow else (network.policy, network.critic)
            push = policy(following).tanh() if slow else policy(following)
            target = rewards + discount * critic(torch.cat([following, push], 1))
        return mse_loss(network.critic(torch.cat([states, pushes], 1)), target)

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        assert isinstance(network, _Pusher)
        states = batch[0][:, :2]
        value = _held(network.critic, torch.cat([states, network.policy(states)], 1)).mean()
        if slow and torch.is_grad_enabled():
            pairs = zip(
                network.slow.parameters(), [*network.policy.parameters(), *network.critic.parameters()], strict=True
            )
            for old, new in pairs:
                old.data.lerp_(new.data, 0.02)
        return critic_error(network, batch, step) - value

    return objective, critic_error


def _pushes(steps: int, size: int) -> list[Batch]:
    """Return states, pushes and rewards, which are the negative squared distance, and the states that follow."""
    states, pushes = torch.randn(steps, size, 2), 2 * torch.rand(steps, size, 1) - 1
    speeds = states[..., 1:] + 0.3 * pushes - 0.1 * states[..., 1:]
    following = torch.cat([states[..., :1] + 0.3 * speeds, speeds], -1)
    rewards = -following.square().sum(-1, keepdim=True) - 0.1 * pushes.square()
    return list(zip(torch.cat([states, pushes, rewards], -1), following, strict=True))


@healthy("deterministic policies")
def mass_pushed_to_the_middle(seed: int) -> Setup:
    """A policy and a critic with slow copies learn by Adam from noisy rewards; the loss is an error minus a value."""
    objective, _ = _pushed(0.9, True)
    module = ByStep(_Pusher(True), objective, adam(0.002))
    return Setup(module, _pushes(250, 32))


@exploding("deterministic policies")
def mass_pushed_without_bounds(seed: int) -> Setup:
    """The same by momentum without slow copies and bounds of the pushes, to where the critic has no data."""
    objective, critic_error = _pushed(0.95, False)
    module = ByStep(_Pusher(False), objective, sgd(0.01, 0.9), outcome=critic_error)
    return Setup(module, _pushes(500, 32))


class _World(nn.Module):
    """An encoder, a transition that is repeated, and a decoder."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 12)
        self.transition = perceptron([12, 24, 12], nn.Tanh) if residual else nn.Linear(12, 12)
        self.decoder = nn.Linear(12, 6)
        self.residual = residual
        if not residual:
            nn.init.orthogonal_(self.transition.weight)  # type: ignore[arg-type]

    def forward(self, first: Tensor, steps: int) -> Tensor:
        """Return what is seen in the following steps."""
        state, seen = self.encoder(first), []
        for _ in range(steps):
            state = self.transition(state) + (state if self.residual else 0.0)
            seen.append(self.decoder(state))
        return torch.stack(seen, 1)


def _pendulums(steps: int, size: int, length: int) -> list[Batch]:
    """Return views of a damped pendulum: a first one, and those that follow."""
    view = torch.randn(4, 6) / 2
    angle, speed = 1.5 * torch.randn(2, steps, size)
    views = []
    for _ in range(length + 1):
        speed = 0.98 * speed - 0.2 * angle.sin()
        angle = angle + 0.2 * speed
        views.append(torch.stack([angle.sin(), angle.cos(), speed, speed * speed / 2], -1) @ view)
    seen = torch.stack(views, 2) + 0.02 * torch.randn(steps, size, length + 1, 6)
    return list(zip(seen[:, :, 0], seen[:, :, 1:], strict=True))


def _imagined(horizon: Callable[[int], int]) -> Any:
    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        steps = horizon(step)
        return mse_loss(network(batch[0], steps), batch[1][:, :steps])

    return objective


@healthy("imagined rollouts")
def pendulum_imagined_ever_further(seed: int) -> Setup:
    """A pendulum is foreseen for 2 steps, then 4, 8 and 16, from the sums of two batches' gradients; AdamW."""
    module = ByStep(_World(True), _imagined(lambda step: 2 ** (1 + min(step // 100, 3))), partial(AdamW, lr=0.004))
    return Setup(module, _pendulums(400, 16, 16), {"accumulate_grad_batches": 2})


@exploding("imagined rollouts")
def pendulum_imagined_linearly(seed: int) -> Setup:
    """A linear transition is repeated sixteen times, by momentum whose rate rises by 1 % per step."""
    module = ByStep(_World(False), _imagined(lambda step: 16), sgd(0.01, 0.9), schedule=lambda step: 1.01**step)
    return Setup(module, _pendulums(500, 16, 16))


def _echoes(units: int, noise: float) -> Tensor:
    """Return the states of a fixed random network that the sunspots drive, with a constant."""
    series = sunspots() / 50.0
    mixing = torch.randn(units, units) / units**0.5
    entering, states, state = torch.randn(units), [], torch.zeros(units)
    for value in series:
        state = (0.8 * mixing @ state + entering * value).tanh()
        states.append(state)
    echoes = torch.stack(states)
    return torch.cat([echoes + noise * torch.randn_like(echoes), torch.ones(len(series), 1)], 1)


def _in_order(steps: int, size: int, states: Tensor) -> list[Batch]:
    """Return states in order, with the number of sunspots in the year after; the series is gone through again."""
    series = sunspots() / 50.0
    years = [(torch.arange(size) + size * step) % (len(series) - 1) for step in range(steps)]
    return [(states[year], series[year + 1, None]) for year in years]


@healthy("reservoirs")
def reservoir_read_in_order(seed: int) -> Setup:
    """Sunspots are read from a reservoir with noise, eight years in order per step; momentum."""
    return Setup(ScenarioModule(nn.Linear(41, 1), mse_loss, sgd(0.005, 0.9)), _in_order(400, 8, _echoes(40, 0.05)))


@exploding("reservoirs")
def reservoir_slightly_too_fast(seed: int) -> Setup:
    """The same with 60 units by a rate 2 % above what the largest curvature admits."""
    states = _echoes(60, 0.0)
    curvature = 2 * float(torch.linalg.matrix_norm(states, 2)) ** 2 / len(states)
    return Setup(ScenarioModule(nn.Linear(61, 1), mse_loss, sgd(2.04 / curvature)), _in_order(500, 32, states))


class _Solver(nn.Module):
    """Rounds of a learned method that finds sparse causes of measurements."""

    def __init__(self, measuring: Tensor) -> None:
        super().__init__()
        size = 1.0 / float(torch.linalg.matrix_norm(measuring, 2)) ** 2
        self.entering = nn.Parameter(size * measuring.T)
        self.repeated = nn.Parameter(torch.eye(measuring.shape[1]) - size * measuring.T @ measuring)
        self.threshold = nn.Parameter(torch.tensor(0.05))

    def forward(self, measured: Tensor, rounds: int) -> Tensor:
        """Return the causes."""
        entering = measured @ self.entering.T
        causes = torch.zeros_like(entering)
        for _ in range(rounds):
            causes = entering + causes @ self.repeated.T
            causes = causes.sign() * (causes.abs() - self.threshold).relu()
        return causes


def _unrolled(rounds: Callable[[int], int]) -> Any:
    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        loss: Tensor = (network(batch[0], rounds(step)) - batch[1]).square().sum(1).mean()
        return loss

    return objective


def _causes(steps: int, size: int) -> tuple[Tensor, list[Batch]]:
    """Return a matrix of measurements, and measured values with their causes, a tenth of which are not zero."""
    measuring = torch.randn(12, 24) / 12**0.5
    causes = torch.randn(steps, size, 24) * (torch.rand(steps, size, 24) < 0.1)
    measured = causes @ measuring.T + 0.02 * torch.randn(steps, size, 12)
    return measuring, list(zip(measured, causes, strict=True))


@healthy("unrolled solvers")
def causes_found_in_more_rounds(seed: int) -> Setup:
    """A learned solver has two rounds, and one more every 50 steps; Adam with a falling rate."""
    measuring, batches = _causes(400, 16)
    module = ByStep(
        _Solver(measuring), _unrolled(lambda step: 2 + step // 50), adam(0.003), schedule=lambda step: 0.995**step
    )
    return Setup(module, batches)


@exploding("unrolled solvers")
def causes_found_in_twelve_rounds(seed: int) -> Setup:
    """Twelve rounds from the start by descent, whose rate rises by 1 % per step."""
    measuring, batches = _causes(500, 32)
    module = ByStep(_Solver(measuring), _unrolled(lambda step: 12), sgd(0.01), schedule=lambda step: 1.01**step)
    return Setup(module, batches)


class _Stages(nn.Module):
    """A small network for the errors of the sum of all stages before."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.stage = perceptron([10, 24, 1])
        self.done: Tensor
        self.register_buffer("done", torch.zeros(number))


def _boosted(shrinkage: float, length: int) -> Any:
    """Return an objective whose targets are the errors that are left, which a stage is taken off at its end."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        assert isinstance(network, _Stages)
        inputs, targets = diabetes(scaled=True)
        if step % length == length - 1 and torch.is_grad_enabled():
            network.done += shrinkage * network.stage(inputs).detach()[:, 0]
        rows = batch[0]
        return mse_loss(network.stage(inputs[rows]), targets[rows] - network.done[rows, None])

    return objective


def _patients(steps: int, size: int) -> list[Batch]:
    return [(rows, rows) for rows in torch.randint(442, (steps, size))]


@healthy("stages of boosting")
def patients_in_ten_stages(seed: int) -> Setup:
    """Each of ten stages learns what the others left, and half of it is kept; RMSprop, batches of twelve."""
    module = ByStep(_Stages(442), _boosted(0.5, 40), partial(RMSprop, lr=0.002))
    return Setup(module, _patients(400, 12))


@exploding("stages of boosting")
def patients_in_stages_that_overshoot(seed: int) -> Setup:
    """Stages of 30 steps are taken off 2.4 times, which leaves more than there was."""
    module = ByStep(_Stages(442), _boosted(2.4, 30), sgd(0.02, 0.9))
    return Setup(module, _patients(500, 32))


class _Crossed(nn.Module):
    """A line, and products of the vectors of features."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(features, 1)
        self.vectors = nn.Parameter(0.1 * torch.randn(features, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum of the line and of the products of all pairs."""
        all_pairs = (inputs @ self.vectors).square() - inputs.square() @ self.vectors.square()
        outputs: Tensor = self.line(inputs) + 0.5 * all_pairs.sum(1, keepdim=True)
        return outputs


def _visits(steps: int, size: int) -> list[Batch]:
    """Return a person, an article and a weekday as ones among zeros, the first two by Zipf's law, and a rating."""
    people, articles = torch.randn(80, 4), torch.randn(60, 4)
    person, article = (
        torch.multinomial(1.0 / torch.arange(1.0, number + 1), steps * size, replacement=True) for number in (80, 60)
    )
    day = torch.randint(7, (steps * size,))
    rating = (people[person] * articles[article]).sum(1) / 2 + 0.3 * (day > 4) + 0.3 * torch.randn(steps * size)
    inputs = torch.zeros(steps * size, 147)
    for places in (person, 80 + article, 140 + day):
        inputs[torch.arange(steps * size), places] = 1.0
    return list(zip(inputs.view(steps, size, 147), rating.view(steps, size, 1), strict=True))


@healthy("crossed features")
def ratings_of_rare_articles(seed: int) -> Setup:
    """Ratings from crossed features, many of them rare, by Adagrad."""
    return Setup(ScenarioModule(_Crossed(147, 8), mse_loss, partial(Adagrad, lr=0.1)), _visits(450, 32))


@exploding("crossed features")
def crossed_measurements(seed: int) -> Setup:
    """Ten measurements of patients are crossed by momentum; products of products make the loss steep far out."""
    module = ScenarioModule(_Crossed(10, 8), mse_loss, sgd(0.02, 0.9), schedule=lambda step: 1.01**step)
    return Setup(module, drawn(diabetes(scaled=True), 500, 16))


class _Cycles(nn.Module):
    """Two maps between two sets of points, and two critics."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = perceptron([2, 32, 2]), perceptron([2, 32, 2])
        self.critics = nn.ModuleList([perceptron([2, 32, 32, 1]) for _ in range(2)])


def _cycle(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return how far points are from where they began after both maps."""
    assert isinstance(network, _Cycles)
    first, second = batch
    return mse_loss(network.back(network.there(first)), first) + mse_loss(network.there(network.back(second)), second)


def _translated(cycle: float) -> Any:
    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        assert isinstance(network, _Cycles)
        loss = cycle * _cycle(network, batch, step)
        for made, real, critic in zip(
            (network.there(batch[0]), network.back(batch[1])), batch[::-1], network.critics, strict=True
        ):
            loss = loss + (_held(critic, made) - 1).square().mean()
            loss = loss + (critic(real) - 1).square().mean() + critic(made.detach()).square().mean()
        return loss

    return objective


def _moons_and_rings(steps: int, size: int) -> list[Batch]:
    """Return points on a ring, and on two arcs."""
    angles = 2 * torch.pi * torch.rand(2, steps, size)
    ring, arcs = torch.stack([angles.cos(), angles.sin()], -1)
    arcs = torch.stack([arcs[..., 0] + arcs[..., 1].sign(), arcs[..., 1]], -1)
    return list(zip(*(points + 0.05 * torch.randn(steps, size, 2) for points in (ring, arcs)), strict=True))


@healthy("cycles between domains")
def rings_to_arcs_and_back(seed: int) -> Setup:
    """Points of a ring are mapped to arcs and back, against two critics that make the losses swing; Adam."""
    module = ByStep(_Cycles(), _translated(5.0), adam(0.002, betas=(0.5, 0.9)))
    return Setup(module, _moons_and_rings(250, 32))


@exploding("cycles between domains")
def rings_to_arcs_by_momentum(seed: int) -> Setup:
    """The same by momentum with a small weight of the way back, and a rate that rises by 1 % per step."""
    module = ByStep(_Cycles(), _translated(1.0), sgd(0.02, 0.9), schedule=lambda step: 1.01**step)
    return Setup(module, _moons_and_rings(500, 32))


class _Sharpened(nn.Module):
    """Logits that are multiplied by a learned sharpness."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.sharpness * self.inner(inputs)
        return logits


@healthy("calibration")
def classifier_then_its_sharpness(seed: int) -> Setup:
    """A classifier is trained for 250 steps with wrong labels, then only the sharpness of its logits on right ones."""

    def calibrate(module: ScenarioModule) -> None:
        module.network.get_submodule("inner").requires_grad_(False)

    pixels, labels = digits()
    wrong = torch.where(torch.rand(len(labels)) < 0.2, torch.randint(10, labels.shape), labels)
    module = ScenarioModule(_Sharpened(perceptron([64, 64, 10])), cross_entropy, sgd(0.1, 0.9), events={250: calibrate})
    return Setup(module, [*drawn((pixels, wrong), 250, 32), *drawn((pixels, labels), 150, 16)])


@exploding("calibration")
def sharpness_runs_away(seed: int) -> Setup:
    """Sharpness and classifier are learned together with wrong labels by a rate that suits neither, without decay."""
    pixels, labels = digits()
    wrong = torch.where(torch.rand(len(labels)) < 0.3, torch.randint(10, labels.shape), labels)
    module = ScenarioModule(_Sharpened(nn.Linear(64, 10)), cross_entropy, sgd(0.5), schedule=lambda step: 1.01**step)
    return Setup(module, drawn((pixels, wrong), 500, 32))


def _hours(steps: int, size: int, lags: int, holiday: bool) -> list[Batch]:
    """Return hourly demand with days, weeks and a trend, in order: the hours before, and the next one."""
    time = torch.arange(float(lags + steps * size))
    demand = (time * 2 * torch.pi / 24).sin() + 0.5 * (time * 2 * torch.pi / 168).cos() + 0.2 * torch.randn(len(time))
    demand = demand + time / len(time)
    if holiday:
        demand[(time % 1700) > 1500] -= 1.5
    pieces = demand.unfold(0, lags + 1, 1)[: steps * size]
    pieces = pieces.reshape(steps, size, lags + 1)
    return [(piece[:, :lags], piece[:, lags:]) for piece in pieces]


@healthy("seasons")
def demand_with_holidays(seed: int) -> Setup:
    """Hourly demand is forecast in the order of time, once; in holidays it falls; Adam with a falling rate."""
    module = ScenarioModule(perceptron([24, 32, 1]), mse_loss, adam(0.003), schedule=lambda step: 0.997**step)
    return Setup(module, _hours(400, 16, 24, True))


@exploding("seasons")
def demand_slightly_too_fast(seed: int) -> Setup:
    """A linear forecast from 48 hours by momentum, whose rate is slightly above what the curvature admits."""
    return Setup(ScenarioModule(nn.Linear(48, 1), mse_loss, sgd(0.0285, 0.9)), _hours(500, 24, 48, False))


class _Curious(nn.Module):
    """A fixed random network, and one that learns its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = perceptron([4, 48, 8], nn.Tanh, gain=1.5).requires_grad_(False)
        self.learned = perceptron([4, 64, 8])


@healthy("curiosity")
def rooms_entered_for_the_first_time(seed: int) -> Setup:
    """The error of a learned copy of a random network, in one room, and in further ones from steps 120 and 240 on."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        assert isinstance(network, _Curious)
        return mse_loss(network.learned(batch[0]), network.fixed(batch[0]))

    rooms = torch.tensor([[0.0, 0, 0, 0], [1.5, 0, -1, 0], [0, -1.5, 0, 1.5]])
    batches = []
    for step in range(400):
        room = rooms[torch.randint(1 + min(step // 120, 2), (24,))]
        states = room + 0.5 * torch.randn(24, 4)
        batches.append((states, states))
    return Setup(ByStep(_Curious(), objective, adam(0.005)), batches)


class _Tree(nn.Module):
    """A tree of four levels whose splits are sigmoids, with a value at each leaf."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.splits = nn.Linear(inputs, 15)
        self.leaves = nn.Parameter(torch.zeros(16, 1))
        self.steepness = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean of the leaves, weighted by the chance to arrive there."""
        right = (self.steepness * self.splits(inputs)).sigmoid()
        chance = torch.ones(len(inputs), 1)
        for level in range(4):
            here = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            chance = torch.stack([chance * (1 - here), chance * here], -1).flatten(1)
        return chance @ self.leaves


@healthy("soft trees")
def tree_with_ever_harder_splits(seed: int) -> Setup:
    """The splits of a tree become eight times as steep, in three jumps; AdamW with decay."""

    def harden(module: ScenarioModule) -> None:
        assert isinstance(module.network, _Tree)
        module.network.steepness *= 2

    module = ScenarioModule(
        _Tree(10), mse_loss, partial(AdamW, lr=0.02, weight_decay=0.01), events=dict.fromkeys((100, 200, 300), harden)
    )
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


@exploding("soft trees")
def tree_by_large_steps(seed: int) -> Setup:
    """Leaves see only a share of the samples each, so that large steps are taken, slightly too large ones."""
    return Setup(ScenarioModule(_Tree(10), mse_loss, sgd(10.0)), drawn(diabetes(scaled=True), 500, 128))
