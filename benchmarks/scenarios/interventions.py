"""Runs that are changed on the way: pruning, resets, another optimizer, restarts, curricula, batches left out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import LanguageModel, LastOutput, ScenarioModule, adam, perceptron, sgd


def prune(module: ScenarioModule, share: float = 0.7) -> None:
    """Set the smallest weights of each matrix to zero."""
    with torch.no_grad():
        for parameter in module.network.parameters():
            if parameter.ndim > 1:
                limit = parameter.abs().flatten().quantile(share)
                parameter.mul_(parameter.abs() > limit)


def set_rate(module: ScenarioModule, factor: float) -> None:
    """Multiply the learning rate."""
    optimizer = module.optimizers()
    assert not isinstance(optimizer, list)
    for group in optimizer.param_groups:
        group["lr"] *= factor


@healthy("pruning")
def pruned_twice(seed: int) -> Setup:
    """Seven in ten weights are set to zero at step 100, and again at step 180."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, adam(0.003), events={100: prune, 180: prune})
    return Setup(module, drawn(digits(), 280, 32))


@exploding("pruning", begins=100)
def pruned_and_hurried(seed: int) -> Setup:
    """After pruning at step 100 the learning rate is five thousand times as large."""

    def change(module: ScenarioModule) -> None:
        prune(module)
        set_rate(module, 5000.0)

    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, sgd(0.05), events={100: change})
    return Setup(module, drawn(digits(), 220, 32))


@healthy("resets")
def last_layer_reset(seed: int) -> Setup:
    """The last layer is initialized again every 80 steps, against the primacy of early data."""

    def reset(module: ScenarioModule) -> None:
        module.network.get_submodule("4").reset_parameters()  # type: ignore[operator]

    events = {80: reset, 160: reset, 240: reset}
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, adam(0.003), events=events)
    return Setup(module, drawn(digits(), 320, 32))


@healthy("resets")
def shrunk_and_perturbed(seed: int) -> Setup:
    """At step 120 all weights are shrunk and noise is added (Ash and Adams 2020)."""

    def change(module: ScenarioModule) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.4).add_(0.02 * torch.randn_like(parameter))

    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.05), events={120: change})
    return Setup(module, drawn(diabetes(scaled=True), 280, 16))


@exploding("resets", begins=120)
def reset_far_too_large(seed: int) -> Setup:
    """At step 120 the last layer gets weights of deviation 5, at a learning rate that the old ones bore."""

    def change(module: ScenarioModule) -> None:
        nn.init.normal_(module.network.get_submodule("4").weight, std=5.0)  # type: ignore[arg-type]

    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, sgd(0.05), events={120: change})
    return Setup(module, drawn(diabetes(scaled=True), 240, 16))


def _switch(rate: float, momentum: float) -> Any:
    def change(module: ScenarioModule) -> None:
        module.trainer.optimizers = [SGD(module.parameters(), lr=rate, momentum=momentum)]

    return change


@healthy("optimizer switch")
def adam_then_descent(seed: int) -> Setup:
    """From step 120 on gradient descent with momentum takes over from Adam."""
    module = ScenarioModule(perceptron([64, 48, 10]), cross_entropy, adam(0.003), events={120: _switch(0.02, 0.9)})
    return Setup(module, drawn(digits(), 260, 32))


@exploding("optimizer switch", begins=120)
def adam_then_too_fast_descent(seed: int) -> Setup:
    """From step 120 on gradient descent takes over, at a learning rate that a regression does not bear."""
    module = ScenarioModule(perceptron([10, 48, 1]), mse_loss, adam(0.003), events={120: _switch(1.5, 0.9)})
    return Setup(module, drawn(diabetes(scaled=True), 260, 32))


@healthy("warm restarts")
def cosine_restarts(seed: int) -> Setup:
    """A cosine of 60 steps that starts again and again from a high learning rate (Loshchilov and Hutter 2017)."""

    def factor(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * (step % 60) / 60)) + 1e-3

    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.5, momentum=0.9), factor)
    return Setup(module, drawn(digits(), 300, 32))


@exploding("warm restarts", begins=120)
def restart_too_high(seed: int) -> Setup:
    """The third cycle starts at a learning rate 200 times as high as the first."""

    def factor(step: int) -> float:
        peak = 200.0 if step >= 120 else 1.0
        return peak * (0.5 * (1 + math.cos(math.pi * (step % 60) / 60)) + 1e-3)

    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02, momentum=0.9), factor)
    return Setup(module, drawn(diabetes(scaled=True), 240, 32))


@healthy("curriculum")
def longer_and_longer(seed: int) -> Setup:
    """Pieces of text of 4, 16 and 48 letters, by a recurrent network."""
    letters = text()[1]
    module = ScenarioModule(LanguageModel(letters, 32, nn.LSTM(32, 32, batch_first=True)), cross_entropy, adam(0.005))
    return Setup(module, [*lines(80, 8, 4), *lines(80, 8, 16), *lines(80, 8, 48)])


@healthy("curriculum")
def harder_targets(seed: int) -> Setup:
    """Targets double in three jumps, and inputs once."""
    batches = drawn(diabetes(scaled=True), 320, 32)
    grown = [(x * (1 + step // 160), y * 2 ** (step // 80)) for step, (x, y) in enumerate(batches)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), nn.SmoothL1Loss(), adam(0.01)), grown)


@exploding("curriculum")
def sequences_grow_too_long(seed: int) -> Setup:
    """A recurrent network whose gain is above one, on sequences that get longer at every step."""
    recurrent = nn.RNN(4, 24, nonlinearity="relu", batch_first=True)
    nn.init.orthogonal_(recurrent.weight_hh_l0, gain=1.3)  # type: ignore[arg-type]
    batches = [(torch.randn(16, 4 + step // 3, 4), torch.randn(16, 1)) for step in range(300)]
    return Setup(ScenarioModule(LastOutput(recurrent, 1), mse_loss, sgd(1e-5)), batches)


class Skipping(ScenarioModule):
    """Leaves out batches with a loss that is not finite, as a user does who knows of them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        """Return the loss, or None to leave the batch out."""
        loss = super().training_step(batch, batch_idx)
        if torch.isfinite(loss):
            return loss
        self.last_loss = self.last_damage = 1.0
        return None


def _spoilt_often(batches: list[Any], every: int) -> list[Any]:
    return [(x * math.nan if step % every == 7 else x, y) for step, (x, y) in enumerate(batches)]


@healthy("skipped batches")
def nan_batches_left_out(seed: int) -> Setup:
    """Every twentieth batch is NaN, and left out by the user."""
    module = Skipping(perceptron([10, 32, 1]), mse_loss, adam(0.003))
    return Setup(module, _spoilt_often(drawn(diabetes(scaled=True), 250, 16), 20))


@healthy("skipped batches")
def a_third_of_the_batches_left_out(seed: int) -> Setup:
    """Every third batch is NaN, and left out by the user; gradient descent."""
    module = Skipping(perceptron([64, 32, 10]), cross_entropy, sgd(0.1))
    batches = drawn(digits(), 301, 16)
    return Setup(module, [(x * math.nan if step % 3 == 1 else x, y) for step, (x, y) in enumerate(batches)])


@healthy("unfreezing")
def unfrozen_by_and_by(seed: int) -> Setup:
    """Layers join from the last to the first, each at the full learning rate."""

    def unfreeze(place: str) -> Any:
        return lambda module: module.network.get_submodule(place).requires_grad_(True)

    network = perceptron([64, 64, 64, 64, 10])
    for place in ("0", "2", "4"):
        network.get_submodule(place).requires_grad_(False)
    events = {60: unfreeze("4"), 120: unfreeze("2"), 180: unfreeze("0")}
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003), events=events), drawn(digits(), 280, 32))


@exploding("unfreezing", begins=100)
def unfrozen_by_descent(seed: int) -> Setup:
    """The whole network joins at step 100, at a learning rate that only the last layer bore."""

    def unfreeze(module: ScenarioModule) -> None:
        module.network.requires_grad_(True)

    network = perceptron([10, 64, 64, 64, 1], gain=3.0)
    network.requires_grad_(False)
    network.get_submodule("6").requires_grad_(True)
    module = ScenarioModule(network, mse_loss, sgd(2e-3), events={100: unfreeze})
    return Setup(module, drawn(diabetes(scaled=True), 220, 32))
