"""Slow growth of kinds that no rule was written for, and healthy runs that look like it."""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import LanguageModel, LastOutput, MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Game(ScenarioModule):
    """Two players of a bilinear game who step at the same time, around a regression that both share.

    Args:
        rate: Learning rate.
        damping: Share of each player's own square that is added to its loss; without it the play spirals outward.
    """

    def __init__(self, rate: float, damping: float) -> None:
        super().__init__(perceptron([10, 16, 1]), mse_loss, sgd(rate))
        self.first, self.second = nn.Parameter(torch.ones(20)), nn.Parameter(torch.ones(20))
        self.damping = damping

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error and the first player's loss; the second one ascends, by a gradient that is turned."""
        second = self.second + 0.0
        if second.requires_grad:
            second.register_hook(lambda gradient: -gradient)  # type: ignore[no-untyped-call]
        play = (self.first * second).sum() + self.damping * (self.first.square() - second.square()).sum()
        error: Tensor = mse_loss(self.network(batch[0]), batch[1])
        return error + play


@exploding("games")
def game_spirals_outward(seed: int) -> Setup:
    """Without damping the players turn around each other in ever larger circles; the loss swings about zero."""
    return Setup(Game(0.3, 0.0), drawn(diabetes(scaled=True), 200, 32))


@healthy("games")
def game_spirals_inward(seed: int) -> Setup:
    """With damping the circles become smaller."""
    return Setup(Game(0.1, 0.2), drawn(diabetes(scaled=True), 300, 32))


class Stale(ScenarioModule):
    """Gradients of weights some steps ago, as in training by several workers that do not wait for each other.

    Args:
        optimizer: Builds the optimizer.
        delay: Number of steps.
        schedule: Factor of the learning rate.
    """

    def __init__(self, optimizer: MakeOptimizer, delay: int, schedule: Any = None) -> None:
        super().__init__(perceptron([10, 32, 1]), mse_loss, optimizer, schedule)
        self.old: deque[list[Tensor]] = deque(maxlen=delay + 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember the weights."""
        self.old.append([parameter.detach().clone() for parameter in self.network.parameters()])

    def on_after_backward(self) -> None:
        """Compute the gradients at the old weights in place of those at hand."""
        twin = copy.deepcopy(self.network)
        for parameter, old in zip(twin.parameters(), self.old[0], strict=True):
            parameter.data.copy_(old)
        twin.zero_grad()
        mse_loss(twin(self.batch[0]), self.batch[1]).backward()  # type: ignore[no-untyped-call]
        for parameter, stale in zip(self.network.parameters(), twin.parameters(), strict=True):
            parameter.grad = stale.grad

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error."""
        self.batch = batch
        return super().loss(batch)


@exploding("stale gradients")
def stale_by_twelve_steps(seed: int) -> Setup:
    """Gradients that are twelve steps old make the loss swing, more widely at each turn."""
    return Setup(Stale(sgd(0.06), 12), drawn(diabetes(scaled=True), 400, 64))


@healthy("stale gradients")
def stale_at_a_small_rate(seed: int) -> Setup:
    """The same at a rate at which the swings die out."""
    return Setup(Stale(sgd(0.01), 12), drawn(diabetes(scaled=True), 300, 64))


@exploding("sensors", begins=60)
def sensor_drifts(seed: int) -> Setup:
    """From step 60 on one of ten sensors drifts by eight percent a step; a network without a norm follows it."""
    batches = drawn(diabetes(scaled=True), 300, 32)
    changed = []
    for step, (inputs, targets) in enumerate(batches):
        scale = torch.ones(10)
        scale[3] = 1.08 ** max(0, step - 60)
        changed.append((inputs * scale, targets))
    return Setup(ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.01)), changed)


@healthy("sensors")
def sensor_recalibrated(seed: int) -> Setup:
    """One of ten sensors drifts to twice its scale over a hundred steps, and is set back."""
    batches = drawn(diabetes(scaled=True), 400, 32)
    changed = []
    for step, (inputs, targets) in enumerate(batches):
        scale = torch.ones(10)
        scale[3] = 1.0 + 0.01 * min(max(step - 100, 0), 100) if step < 250 else 1.0
        changed.append((inputs * scale, targets))
    return Setup(ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, adam(0.003)), changed)


class OwnRate(ScenarioModule):
    """A learning rate that follows the product of successive gradients (Baydin et al. 2018).

    Args:
        rate: Rate at the start.
        pace: Factor by which the rate rises where gradients agree.
        least: Factor by which it changes where they do not.
    """

    def __init__(self, rate: float, pace: float, least: float) -> None:
        super().__init__(perceptron([64, 64, 10]), cross_entropy, sgd(rate))
        self.pace, self.least = pace, least
        self.before: list[Tensor] = []

    def on_after_backward(self) -> None:
        """Change the rate."""
        now = [parameter.grad.detach().clone() for parameter in self.network.parameters() if parameter.grad is not None]
        agree = sum(float((old * new).sum()) for old, new in zip(self.before, now, strict=False))
        self.before = now
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] *= self.pace if agree > 0 else self.least


@exploding("rates of their own")
def rate_of_its_own_runs_away(seed: int) -> Setup:
    """A rate that rises by six percent where gradients agree, and hardly falls where they do not."""
    return Setup(OwnRate(0.1, 1.06, 1.05), drawn(digits(), 300, 32))


@healthy("rates of their own")
def rate_of_its_own(seed: int) -> Setup:
    """A rate that rises by four percent where gradients agree, and is lowered by a tenth where they do not."""
    return Setup(OwnRate(0.02, 1.04, 0.9), drawn(digits(), 300, 32))


class SelfTaught(ScenarioModule):
    """Targets that are the network's own outputs on other views, times a factor (self-training).

    Args:
        optimizer: Builds the optimizer.
        factor: Confidence that is added to the own outputs.
        share: Share of own targets among all.
    """

    def __init__(self, optimizer: MakeOptimizer, factor: float, share: float) -> None:
        super().__init__(perceptron([64, 64, 10]), mse_loss, optimizer)
        self.factor, self.share = factor, share

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the errors against labels and against the own outputs."""
        images, labels = batch
        outputs = self.network(images)
        with torch.no_grad():
            own = self.factor * self.network(images + 0.1 * torch.randn_like(images))
        known = mse_loss(outputs, nn.functional.one_hot(labels, 10).float())
        return (1 - self.share) * known + self.share * mse_loss(outputs, own)


@exploding("self-training")
def overconfident_of_itself(seed: int) -> Setup:
    """Own targets are three times the outputs, and count for nearly all."""
    return Setup(SelfTaught(sgd(0.3), 3.0, 0.9), drawn(digits(), 300, 32))


@healthy("self-training")
def confident_of_itself(seed: int) -> Setup:
    """Own targets are a fifth larger than the outputs, and count for a half."""
    return Setup(SelfTaught(adam(0.002), 1.2, 0.5), drawn(digits(), 300, 32))


@exploding("averages")
def averaged_ahead(seed: int) -> Setup:
    """Each step goes on by four percent beyond the weights' change since the start, as a wrong average would."""

    def overshoot(module: ScenarioModule) -> None:
        if not hasattr(module, "starts"):
            module.starts = [p.detach().clone() for p in module.network.parameters()]  # type: ignore[assignment]
        with torch.no_grad():
            for parameter, start in zip(module.network.parameters(), module.starts, strict=True):  # type: ignore[arg-type]
                parameter.add_(parameter - start, alpha=0.04)

    events = dict.fromkeys(range(400), overshoot)
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.01), events=events)
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


@healthy("averages")
def averaged_back(seed: int) -> Setup:
    """Every ten steps the weights go half way back to those of ten steps before (Zhang et al. 2019)."""

    def back(module: ScenarioModule) -> None:
        slow = getattr(module, "slow", None)
        with torch.no_grad():
            for place, parameter in enumerate(module.network.parameters()):
                if slow is not None:
                    parameter.lerp_(slow[place], 0.5)
        module.slow = [p.detach().clone() for p in module.network.parameters()]  # type: ignore[assignment]

    events = dict.fromkeys(range(0, 300, 10), back)
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.05, momentum=0.9), events=events)
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


def _lstm_language(optimizer: MakeOptimizer, schedule: Any) -> ScenarioModule:
    network = LanguageModel(text()[1], 24, nn.GRU(24, 24, batch_first=True))
    return ScenarioModule(network, cross_entropy, optimizer, schedule)


@exploding("long schedules")
def rate_creeps_by_two_percent(seed: int) -> Setup:
    """A gated language model by descent with momentum, at a rate that rises by two percent a step."""
    return Setup(_lstm_language(sgd(0.5, momentum=0.9), lambda step: 1.02**step), lines(400, 8, 16))


@healthy("long schedules")
def rate_rises_and_falls(seed: int) -> Setup:
    """The rate rises by two percent a step to twenty times its start, and falls as it rose."""
    return Setup(_lstm_language(adam(3e-4), lambda step: 1.02 ** min(step, 300 - step)), lines(300, 8, 16))


class Saddle(nn.Module):
    """Three matrices near zero, whose product is learned: nothing happens for long, then all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(10, 10, bias=False) for _ in range(3)])
        for layer in self.layers:
            nn.init.normal_(layer.get_parameter("weight"), std=0.03)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product with the inputs."""
        outputs: Tensor = self.layers(inputs)
        return outputs


@healthy("saddles")
def saddle_left_slowly(seed: int) -> Setup:
    """Gradients grow a thousandfold while the loss rests, then it falls."""
    turn = torch.linalg.qr(torch.randn(10, 10)).Q
    inputs = torch.randn(300, 32, 10)
    batches = [(x, 2 * x @ turn) for x in inputs]
    return Setup(ScenarioModule(Saddle(), mse_loss, adam(0.003)), batches)


class Feedback(ScenarioModule):
    """A controller and a linear plant, unrolled over time; the plant is stable or not."""

    def __init__(self, optimizer: MakeOptimizer, gain: float, grows: float) -> None:
        super().__init__(perceptron([4, 16, 4]), mse_loss, optimizer)
        self.gain, self.grows, self.seen = gain, grows, 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean square of the states over twelve time steps."""
        state, cost = batch[0], torch.zeros(())
        for _ in range(12):
            state = (self.gain + self.grows * self.seen) * state + 0.5 * self.network(state)
            cost = cost + state.square().mean() / 12
        self.seen += torch.is_grad_enabled()
        return cost


def _started(steps: int) -> list[Any]:
    return [(state, state) for state in torch.randn(steps, 16, 4)]


@exploding("control")
def plant_becomes_unstable(seed: int) -> Setup:
    """The plant's gain rises by 0.004 a step, faster than the controller learns."""
    return Setup(Feedback(sgd(0.002), 0.8, 0.004), _started(500))


@healthy("control")
def plant_is_held(seed: int) -> Setup:
    """An unstable plant that the controller learns to hold."""
    return Setup(Feedback(adam(0.005), 1.1, 0.0), _started(250))


@healthy("multi-stage")
def heads_join_by_and_by(seed: int) -> Setup:
    """A term joins the loss at steps 80 and 160, each as large as all before, while the rate decays."""

    class Stages(ScenarioModule):
        seen = 0

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            self.seen += torch.is_grad_enabled()
            outputs, (inputs, targets) = self.network(batch[0]), batch
            terms = [
                huber_loss(outputs[:, :1], targets),
                mse_loss(outputs[:, 1:4], inputs[:, :3]),
                mse_loss(outputs[:, 4:], inputs[:, 3:7].square()),
            ]
            return sum(terms[: 1 + self.seen // 80], torch.zeros(()))

    module = Stages(perceptron([10, 48, 8]), mse_loss, adam(0.005), lambda step: math.exp(-step / 100))
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


@exploding("sequences")
def recurrent_gain_is_learned(seed: int) -> Setup:
    """A linear recurrence over sixty time steps is to keep its first input, by descent at a rate that rises slowly."""
    network = LastOutput(nn.RNN(1, 8, batch_first=True, nonlinearity="relu"), 1)
    with torch.no_grad():
        network.recurrent.weight_hh_l0.copy_(0.97 * torch.eye(8))  # type: ignore[operator]
    inputs = torch.randn(400, 16, 60, 1) * 0.1
    batches = [(x, x[:, 0]) for x in inputs]
    return Setup(ScenarioModule(network, mse_loss, sgd(0.03), lambda step: 1.015**step), batches)
