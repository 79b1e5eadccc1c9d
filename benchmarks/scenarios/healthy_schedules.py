"""Healthy runs whose learning rate, task or network changes on the way."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, sunspots, text, windows
from benchmarks.scenarios.family import Setup, healthy
from benchmarks.scenarios.module import (
    Block,
    LanguageModel,
    LastOutput,
    ScenarioModule,
    adam,
    perceptron,
    set_frozen,
    sgd,
)


@healthy("schedule")
def warmup(seed: int) -> Setup:
    """A transformer on text whose learning rate warms up for 50 steps and then decays by a cosine."""

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / 200))

    _, letters = text()
    body = nn.Sequential(*(Block(32) for _ in range(2)), nn.LayerNorm(32))
    module = ScenarioModule(LanguageModel(letters, 32, body), cross_entropy, adam(0.01), schedule)
    return Setup(module, lines(200, 8, 16))


@healthy("schedule")
def restarts(seed: int) -> Setup:
    """A learning rate that falls by a cosine and starts again high every 60 steps."""

    def schedule(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * (step % 60) / 60))

    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.5, momentum=0.9), schedule)
    return Setup(module, drawn(digits(), 300, 32))


@healthy("classification")
def new_task(seed: int) -> Setup:
    """At step 150 the labels change their meaning; the loss jumps and comes down again."""
    inputs, labels = digits()
    batches = drawn((inputs, labels), 150, 32) + drawn((inputs, (labels + 3) % 10), 150, 32)
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.1)), batches)


@healthy("schedule")
def unfreezing(seed: int) -> Setup:
    """The first layers are frozen for 100 steps, then they learn as well."""
    events = {0: partial(set_frozen, frozen=True), 100: partial(set_frozen, frozen=False)}
    return Setup(
        ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(0.2), events=events), drawn(digits(), 250, 32)
    )


@healthy("recurrent")
def longer_sequences(seed: int) -> Setup:
    """A gated recurrent network on sunspots, whose sequences grow from 5 to 40 years."""
    series = (sunspots() - sunspots().mean()) / sunspots().std()
    batches = [batch for step in range(200) for batch in windows(series, 1, 16, 5 + 35 * step // 200)]
    return Setup(ScenarioModule(LastOutput(nn.GRU(1, 16, batch_first=True), 1), mse_loss, adam(0.01)), batches)


@healthy("curvature")
def edge_of_stability(seed: int) -> Setup:
    """Full-batch gradient descent at a rate at which the curvature hovers at the limit and the loss is not monotone."""
    inputs, labels = digits()
    targets = nn.functional.one_hot(labels, 10).float()
    rows = slice(0, 256)
    module = ScenarioModule(perceptron([64, 32, 32, 10], nn.Tanh), half_square, sgd(0.35))
    return Setup(module, [(inputs[rows], targets[rows])] * 400)


@healthy("classification")
def accumulation(seed: int) -> Setup:
    """Gradients are accumulated over four small batches, the last window being shorter."""
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.05))
    return Setup(module, drawn(diabetes(scaled=True), 601, 4), {"accumulate_grad_batches": 4})


@healthy("curvature")
def momentum_swings(seed: int) -> Setup:
    """Gradient descent with momentum 0.98 overshoots and swings, each time less."""
    module = ScenarioModule(perceptron([10, 1]), mse_loss, sgd(0.01, momentum=0.98))
    return Setup(module, drawn(diabetes(scaled=True), 300, 256))


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared error, summed over the outputs."""
    return (outputs - targets).square().sum(1).mean() / 2
