"""Rules by which weights move: filters, proximal steps, Langevin noise, extrapolation, Hebb, rates as triangles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def _echoes(steps: int, loud_from: int, loudness: float) -> list[Batch]:
    """Draw pieces of a signal with the echo that a filter of sixteen taps shall predict, one or two at a time."""
    path = torch.randn(16) * 0.8 ** torch.arange(16)
    batches = []
    for step in range(steps):
        signal = torch.randn(2, 16) * (loudness if step >= loud_from else 1.0)
        batches.append((signal, (signal @ path + 0.05 * torch.randn(2))[:, None]))
    return batches


@healthy("adaptive echoes")
def filter_with_normalized_steps(seed: int) -> Setup:
    """The error is divided by the power of the signal, so that passages three times as loud do no harm."""

    def objective(network: nn.Module, batch: Batch, step: int) -> Tensor:
        error = (network(batch[0]) - batch[1]).square()
        loss: Tensor = (error / (1 + batch[0].square().sum(1, keepdim=True))).mean()
        return loss

    module = ByStep(nn.Linear(16, 1, bias=False), objective, sgd(0.4))
    return Setup(module, _echoes(300, 150, 3.0))


@exploding("adaptive echoes", begins=120)
def filter_of_a_louder_signal(seed: int) -> Setup:
    """Steps of fixed size, and from step 120 on the signal is four times as loud."""
    module = ScenarioModule(nn.Linear(16, 1, bias=False), mse_loss, sgd(0.03))
    return Setup(module, _echoes(240, 120, 4.0))


class Proximal(ScenarioModule):
    """A linear model; after each step of descent its weights shrink towards zero by a fixed amount.

    Args:
        rate: The learning rate.
        amount: Penalty of each weight's absolute value.
    """

    def __init__(self, rate: float, amount: float) -> None:
        super().__init__(nn.Linear(40, 1, bias=False), mse_loss, sgd(rate))
        self.shrink = rate * amount

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Shrink."""
        with torch.no_grad():
            for weight in self.network.parameters():
                weight.copy_(weight.sign() * (weight.abs() - self.shrink).clamp(min=0))


def _few_of_many() -> Batch:
    inputs = torch.randn(60, 40) @ torch.diag(0.5 + 2 * torch.rand(40))
    return inputs, (inputs[:, :3].sum(1) + 0.1 * torch.randn(60))[:, None]


@healthy("proximal steps")
def weights_shrink_to_few(seed: int) -> Setup:
    """Weights become exactly zero, and most of the norm goes with them."""
    return Setup(Proximal(0.02, 1.0), [_few_of_many()] * 200)


@exploding("proximal steps")
def proximal_steps_too_long(seed: int) -> Setup:
    """The step is above what the largest eigenvalue takes by a third."""
    batch = _few_of_many()
    largest = float(torch.linalg.eigvalsh(2 * batch[0].T @ batch[0] / 60)[-1])
    return Setup(Proximal(2.6 / largest, 0.1), [batch] * 200)


class Langevin(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics: descent with noise of a size that a temperature decides."""

    def __init__(self, params: Any, lr: float, temperature: float) -> None:
        super().__init__(params, {"lr": lr, "temperature": temperature})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all weights."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            noise = math.sqrt(2 * group["lr"] * group["temperature"])
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(group["lr"] * weight.grad).add_(noise * torch.randn_like(weight))
        return loss


def _langevin(rate: float, temperature: float) -> Any:
    return lambda weights: Langevin(weights, rate, temperature)


@healthy("sampled weights")
def weights_sampled(seed: int) -> Setup:
    """The loss finds its level and stays there, with noise; updates are mostly noise."""
    module = ScenarioModule(perceptron([10, 24, 1]), mse_loss, _langevin(0.02, 3e-4))
    return Setup(module, drawn(diabetes(scaled=True), 260, 32))


@healthy("sampled weights")
def weights_sampled_in_cycles(seed: int) -> Setup:
    """The rate restarts every 60 steps: at each start the loss rises, as the sampler leaves one mode for the next."""
    schedule = lambda step: 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step % 60) / 60))  # noqa: E731
    module = ScenarioModule(perceptron([64, 32, 10]), cross_entropy, _langevin(0.5, 1e-4), schedule)
    return Setup(module, drawn(digits(), 240, 32))


@exploding("sampled weights")
def weights_sampled_with_long_steps(seed: int) -> Setup:
    """The rate of a sampler that is exact in the limit of small steps is raised by two percent at each step."""
    schedule = lambda step: 1.02**step  # noqa: E731
    module = ScenarioModule(perceptron([10, 24, 1]), mse_loss, _langevin(0.05, 1e-4), schedule)
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


class Extrapolated(ScenarioModule):
    """Every ten steps the weights jump along the way of the last ten.

    Args:
        rate: The learning rate.
        factor: Length of the jump over that of the way.
        until: Number of the last batch before which weights jump.
    """

    def __init__(self, rate: float, factor: float, until: int) -> None:
        super().__init__(perceptron([10, 24, 24, 1]), mse_loss, sgd(rate))
        self.factor, self.until = factor, until
        self.before: list[Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Jump."""
        if batch_idx % 10 or batch_idx > self.until:
            return
        with torch.no_grad():
            weights = list(self.network.parameters())
            if self.before:
                for weight, before in zip(weights, self.before, strict=True):
                    weight.add_(self.factor * (weight - before))
            self.before = [weight.clone() for weight in weights]


@healthy("extrapolated iterates")
def jumps_along_the_way(seed: int) -> Setup:
    """Jumps twice as long as the way of the last ten steps."""
    return Setup(Extrapolated(0.03, 2.0, 300), drawn(diabetes(scaled=True), 240, 64))


@exploding("extrapolated iterates")
def jumps_too_far(seed: int) -> Setup:
    """Jumps of thirty times the way: noise across a valley is multiplied as well."""
    return Setup(Extrapolated(0.1, 30.0, 300), drawn(diabetes(scaled=True), 240, 32))


def _variance(network: nn.Module, batch: Batch, decay: float) -> Tensor:
    """Return half the negative variance that a direction explains, less a penalty of its length."""
    (weight,) = network.parameters()
    penalty = decay * weight.square().sum().square() / 4
    return penalty - 0.5 * (batch[0] @ weight).square().mean()


def _centered(steps: int, size: int) -> list[Batch]:
    pixels, labels = digits()
    return drawn((pixels - pixels.mean(0), labels), steps, size)


@healthy("Hebbian rules")
def direction_by_oja(seed: int) -> Setup:
    """The direction of largest variance from a small start: the loss leaves zero slowly, then falls fast."""
    weight = nn.ParameterList([0.02 * torch.randn(64)])
    return Setup(ByStep(weight, lambda n, b, _: _variance(n, b, 1.0), sgd(1.0)), _centered(260, 16))


@exploding("Hebbian rules")
def direction_by_hebb(seed: int) -> Setup:
    """The same rule without the decay: the direction grows without limit, and the loss falls."""
    weight = nn.ParameterList([0.2 * torch.randn(64)])
    return Setup(ByStep(weight, lambda n, b, _: _variance(n, b, 0.0), sgd(0.05)), _centered(300, 32))


def _triangle(step: int, period: int, growth: float) -> float:
    phase = (step % period) / period
    return growth ** (step // period) * (0.1 + 1.8 * min(phase, 1 - phase))


@healthy("triangular rates")
def rates_as_triangles(seed: int) -> Setup:
    """A rate between a tenth and one every 60 steps, high enough for the loss to rise at each peak."""
    network = perceptron([10, 32, 32, 1])
    module = ScenarioModule(network, mse_loss, sgd(0.25, 0.9), lambda step: _triangle(step, 60, 1.0))
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


@exploding("triangular rates")
def rates_as_growing_triangles(seed: int) -> Setup:
    """Each peak is twice as high as the one before."""
    network = perceptron([10, 32, 32, 1])
    module = ScenarioModule(network, mse_loss, sgd(0.1, 0.9), lambda step: _triangle(step, 40, 2.0))
    return Setup(module, drawn(diabetes(scaled=True), 400, 32))


class AveragedTail(ScenarioModule):
    """Every ten steps from a step on, the weights are replaced by the average of those at such steps."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Average, and restart momentum from the average."""
        if batch_idx < 120 or batch_idx % 40:
            return
        with torch.no_grad():
            weights = list(self.network.parameters())
            kept = self.__dict__.setdefault("kept", [weight.clone() for weight in weights])
            for weight, average in zip(weights, kept, strict=True):
                average.lerp_(weight, 0.5)
                weight.copy_(average)


@healthy("averaged tails")
def tail_averaged(seed: int) -> Setup:
    """A high constant rate in the tail of the run, with weights set back to their average every 40 steps."""
    schedule = lambda step: 0.2 if step < 120 else 1.0  # noqa: E731
    module = AveragedTail(perceptron([64, 48, 10]), cross_entropy, sgd(0.4, 0.9), schedule)
    return Setup(module, drawn(digits(), 300, 32))


@exploding("averaged tails", begins=120)
def tail_at_a_rate_for_breadth(seed: int) -> Setup:
    """In the tail, the rate is raised for a broad minimum, and far too high for this network."""
    schedule = lambda step: 0.02 if step < 120 else 1.0  # noqa: E731
    module = AveragedTail(perceptron([10, 48, 48, 1]), mse_loss, sgd(1.0, 0.9), schedule)
    return Setup(module, drawn(diabetes(scaled=True), 240, 32))


@healthy("losses near zero")
def solved_by_interpolation(seed: int) -> Setup:
    """Sixteen samples are learned by heart: the loss falls by ten orders of magnitude, with spikes."""
    inputs, targets = diabetes(scaled=True)
    batch = inputs[:16], targets[:16]
    return Setup(ScenarioModule(perceptron([10, 64, 64, 1]), mse_loss, adam(0.02)), [batch] * 400)
