"""Explosions that build up slowly, or late: drift, delays, outer loops, feedback, and states that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer

from benchmarks.scenarios.data import diabetes, digits, drawn, sunspots, windows
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected


class Descent(Optimizer):
    """Gradient descent with one of several accidents.

    Args:
        parameters: The parameters.
        lr: Learning rate.
        delay: Number of steps that gradients are old (Niu et al. 2011).
        noise: Deviation of noise that is added to each gradient.
        outer: Learning rate of the outer step, every ten steps, with Nesterov's momentum (Douillard et al. 2023).
        hyper: Learning rate of the learning rate (Baydin et al. 2018).
        average: Whether the weights are those of schedule-free descent (Defazio et al. 2024).
    """

    def __init__(
        self,
        parameters: Any,
        lr: float,
        delay: int = 0,
        noise: float = 0.0,
        outer: float = 0.0,
        hyper: float = 0.0,
        average: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.delay, self.noise, self.outer, self.hyper, self.average = delay, noise, outer, hyper, average
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        group = self.param_groups[0]
        present = [one for one in group["params"] if one.grad is not None]
        if self.hyper:
            change = sum(float((self.state[one].get("last", one.grad) * one.grad).sum()) for one in present)
            group["lr"] += self.hyper * change
        for one in present:
            state = self.state[one]
            state["last"] = one.grad.clone()
            queue = state.setdefault("queue", [])
            queue.append(one.grad.clone())
            gradient = queue.pop(0) if len(queue) > self.delay else torch.zeros_like(one)
            gradient += self.noise * torch.randn_like(one)
            if self.average:
                far = state.setdefault("far", one.clone()).sub_(gradient, alpha=group["lr"])
                mean = state.setdefault("mean", one.clone()).lerp_(far, 1 / self.steps)
                one.copy_(0.1 * far + 0.9 * mean)
            else:
                one.sub_(gradient, alpha=group["lr"])
            if self.outer:
                anchor = state.setdefault("anchor", one.clone())
                if self.steps % 10 == 0:
                    change = anchor - one
                    momentum = state.setdefault("momentum", torch.zeros_like(one)).mul_(0.9).add_(change)
                    anchor.sub_(self.outer * (change + 0.9 * momentum))
                    one.copy_(anchor)
        return loss


def descent(rate: float, **options: Any) -> Callable[..., Optimizer]:
    """Return a builder of `Descent`."""
    return lambda parameters: Descent(parameters, rate, **options)


def _regression(optimizer: Any, steps: int = 300, size: int = 32, **options: Any) -> Setup:
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, optimizer, **options)
    return Setup(module, drawn(diabetes(scaled=True), steps, size))


@healthy("old gradients")
def gradients_three_steps_old(seed: int) -> Setup:
    """Gradients are three steps old, at a rate that bears it."""
    return _regression(descent(0.03, delay=3))


@exploding("old gradients")
def gradients_twelve_steps_old(seed: int) -> Setup:
    """Gradients are twelve steps old, at a rate that would do for fresh ones."""
    return _regression(descent(0.1, delay=12))


@healthy("outer loops")
def outer_steps(seed: int) -> Setup:
    """Every ten steps an outer step with momentum."""
    return _regression(descent(0.02, outer=0.7))


@exploding("outer loops")
def outer_steps_too_large(seed: int) -> Setup:
    """The same at three times the outer rate."""
    return _regression(descent(0.05, outer=2.5), steps=500)


@healthy("private gradients")
def little_noise_on_gradients(seed: int) -> Setup:
    """Noise on each gradient, as for privacy."""
    return _regression(descent(0.02, noise=0.3))


@exploding("private gradients")
def much_noise_on_gradients(seed: int) -> Setup:
    """Noise that the weights walk away with, slowly."""
    return _regression(descent(0.1, noise=2.0), steps=500)


@healthy("learned rates")
def learned_rate(seed: int) -> Setup:
    """The learning rate follows the product of gradients."""
    return _regression(descent(0.01, hyper=1e-5))


@exploding("learned rates")
def learned_rate_runs_away(seed: int) -> Setup:
    """The same ten thousand times as fast."""
    return _regression(descent(0.01, hyper=0.05))


@healthy("schedule-free")
def schedule_free(seed: int) -> Setup:
    """Weights between the last ones and their mean."""
    return Setup(
        ScenarioModule(perceptron([64, 48, 10]), cross_entropy, descent(1.0, average=True)), drawn(digits(), 300, 32)
    )


@exploding("schedule-free")
def schedule_free_too_fast(seed: int) -> Setup:
    """The same on a regression that does not bear it."""
    return _regression(descent(3.0, average=True))


class Baird(Objected):
    """Values of seven states that are linear in eight weights, learned of another policy (Baird 1995)."""


def _baird(network: nn.Module, batch: Any) -> Tensor:
    states, following = batch
    with torch.no_grad():
        wanted = 0.99 * network(following)
    return mse_loss(network(states), wanted)


@exploding("values")
def baird(seed: int) -> Setup:
    """Learned values drift away for ever, for the next state is always the seventh."""
    features = torch.cat(
        [torch.cat([2 * torch.eye(6), torch.zeros(6, 1), torch.ones(6, 1)], 1), torch.tensor([[0.0] * 6 + [1.0, 2.0]])]
    )
    network = nn.Linear(8, 1, bias=False)
    network.weight.data = torch.tensor([[1.0] * 6 + [10.0, 1.0]])
    batches = [(features[torch.randint(7, (16,))], features[6].repeat(16, 1)) for _ in range(600)]
    return Setup(Objected(network, _baird, sgd(0.02)), batches)


@exploding("values")
def largest_of_many_values(seed: int) -> Setup:
    """The largest of ten noisy values is the target of the next step, with a discount of almost one."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        with torch.no_grad():
            wanted = b[2] + 0.999 * n(b[1]).max(1).values
        return mse_loss(n(b[0]).gather(1, b[3])[:, 0], wanted)

    batches = [(torch.randn(32, 6), torch.randn(32, 6), torch.rand(32), torch.randint(10, (32, 1))) for _ in range(700)]
    return Setup(Objected(perceptron([6, 64, 10]), objective, adam(0.005)), batches)


@exploding("classification")
def invariant_weights_by_adam(seed: int) -> Setup:
    """Layers that are normalised behind, so that their weights grow with every step and no loss shows it."""
    layers: list[nn.Module] = []
    for inputs in (64, 48, 48):
        layers += [nn.Linear(inputs, 48, bias=False), nn.LayerNorm(48, elementwise_affine=False), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(48, 10))
    return Setup(ScenarioModule(network, cross_entropy, adam(0.3)), drawn(digits(), 700, 32))


class Feedback(nn.Module):
    """A network that predicts a series from its own predictions for some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron([8, 24, 1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the prediction after some of its own, shape ``(batch, 1)``."""
        values = inputs[:, :8, 0] / 50
        for _ in range(inputs.shape[1] - 8):
            values = torch.cat([values[:, 1:], values[:, -1:] + self.inner(values)], 1)
        return values[:, -1:] * 50


@exploding("recurrent")
def longer_forecasts(seed: int) -> Setup:
    """Forecasts of the sunspots from forecasts, further ahead every 20 steps, by gradient descent."""
    batches = [batch for length in range(9, 39) for batch in windows(sunspots(), 20, 16, length)]
    return Setup(ScenarioModule(Feedback(), mse_loss, sgd(2e-5)), batches)


def _second_moments(factor: float) -> Callable[[ScenarioModule], None]:
    def change(module: ScenarioModule) -> None:
        optimizer: Any = module.optimizers()
        for state in optimizer.optimizer.state.values():
            state["exp_avg_sq"].mul_(factor)

    return change


@exploding("states that do not fit", begins=120)
def second_moments_of_a_smaller_loss(seed: int) -> Setup:
    """Adam goes on with second moments of a loss that was a hundred thousand times as small."""
    return _regression(adam(0.02, betas=(0.9, 0.9999)), events={120: _second_moments(1e-10)})


@healthy("states that do not fit")
def second_moments_of_a_larger_loss(seed: int) -> Setup:
    """Adam goes on with second moments of a loss that was thirty times as large."""
    return _regression(adam(0.005), events={120: _second_moments(1000.0)})


@exploding("states that do not fit", begins=150)
def average_restored_with_the_wrong_sign(seed: int) -> Setup:
    """Weights are replaced by twice themselves less an average of old ones, at each step from 150 on."""
    setup = _regression(sgd(0.02))
    module = setup.module
    old = copy.deepcopy(module.network)

    def extrapolate(module: ScenarioModule) -> None:
        with torch.no_grad():
            for one, before in zip(module.network.parameters(), old.parameters(), strict=True):
                one.lerp_(before, -0.03)

    module.events = dict.fromkeys(range(150, 300), extrapolate)
    return setup
