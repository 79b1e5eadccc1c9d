"""Runs that begin again, are steered by another network or by gates, or learn from their own labels."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gumbel_softmax, mse_loss

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.distilling import trained
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def _warmed(step: int) -> float:
    return min(1.0, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * step / 300))


@healthy("warmed up again")
def trained_and_warmed_again(seed: int) -> Setup:
    """A trained network learns on, inputs mirrored, at a rate that warms up to its old peak: the loss rises first."""
    batches = [(inputs.flip(1), labels) for inputs, labels in drawn(digits(), 300, 32)]
    return Setup(ScenarioModule(trained([64, 64, 10], 400), cross_entropy, sgd(0.5, momentum=0.9), _warmed), batches)


@exploding("warmed up again")
def warmed_again_too_far(seed: int) -> Setup:
    """A trained deep network is warmed up to a rate fifty times as high as it takes."""
    network = trained([64, 64, 64, 64, 10], 400)
    module = ScenarioModule(network, cross_entropy, sgd(10.0, momentum=0.9), _warmed)
    return Setup(module, [(inputs.flip(1), labels) for inputs, labels in drawn(digits(), 300, 32)])


class SelfTaught(ScenarioModule):
    """Learns from few labels, and from what an average of itself says of the other rows, whose weight rises."""

    def __init__(self) -> None:
        super().__init__(perceptron([64, 64, 10]), cross_entropy, sgd(0.1, momentum=0.9))
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.step = 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of the labelled quarter and the weighted distance from the average's outputs."""
        inputs, labels = batch
        noisy = self.network(inputs + 0.1 * torch.randn_like(inputs))
        distance = mse_loss(noisy.softmax(1), self.average(inputs).softmax(1))
        return cross_entropy(noisy[:8], labels[:8]) + 100 * min(1.0, self.step / 150) * distance

    def on_train_batch_end(self, *args: Any) -> None:
        """Move the average."""
        self.step += 1
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 0.05)


@healthy("few labels")
def taught_by_its_average(seed: int) -> Setup:
    """The weight of the unlabelled loss rises from 0 to 100."""
    return Setup(SelfTaught(), drawn(digits(), 300, 32))


class Generated(nn.Module):
    """A small network whose weights are made by another one from a number that belongs to the task."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = perceptron([4, 32, 11 * 16 + 17])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs; the last four columns of the inputs name the task, one for a batch."""
        made = self.maker(inputs[0, 10:])
        first, second = made[:176].view(16, 11), made[176:]
        hidden = torch.tanh(inputs[:, :10] @ first[:, :10].T + first[:, 10])
        outputs: Tensor = hidden @ second[:16, None] + second[16]
        return outputs


def _tasks(steps: int, unit: float = 1.0) -> list[Batch]:
    shifts = torch.randn(4)
    batches = []
    for step, (inputs, targets) in enumerate(drawn(diabetes(scaled=True), steps, 32)):
        task = nn.functional.one_hot(torch.tensor(step % 4), 4).float().expand(32, 4)
        batches.append((torch.cat([inputs, task], 1), unit * (targets + shifts[step % 4])))
    return batches


@healthy("networks that make networks")
def made_weights(seed: int) -> Setup:
    """Four tasks in turn, whose networks are made by one network."""
    return Setup(ScenarioModule(Generated(), mse_loss, adam(0.005)), _tasks(300))


@exploding("networks that make networks")
def made_weights_too_fast(seed: int) -> Setup:
    """The same by descent, on targets of another unit."""
    return Setup(ScenarioModule(Generated(), mse_loss, sgd(0.02)), _tasks(300, 30.0))


class Gated(nn.Module):
    """Residual blocks behind gates that start at zero."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(perceptron([64, 64, 64]) for _ in range(blocks))
        self.gates = nn.Parameter(torch.zeros(blocks))
        self.head = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        for gate, block in zip(self.gates, self.blocks, strict=True):
            inputs = inputs + gate * block(inputs)
        logits: Tensor = self.head(inputs)
        return logits


@healthy("gates")
def gates_from_zero(seed: int) -> Setup:
    """Twelve blocks whose gates open from zero, by descent with momentum."""
    return Setup(ScenarioModule(Gated(), cross_entropy, sgd(0.1, momentum=0.9)), drawn(digits(), 250, 32))


@exploding("gates")
def gates_open_too_fast(seed: int) -> Setup:
    """The same at a rate at which the gates open at once, and the blocks multiply."""
    return Setup(ScenarioModule(Gated(), cross_entropy, sgd(3.0, momentum=0.9)), drawn(digits(), 250, 32))


class Discrete(ScenarioModule):
    """An autoencoder with a code of letters, drawn at a temperature that falls from 5 to a tenth."""

    def __init__(self, rate: float) -> None:
        super().__init__(perceptron([64, 64, 32]), mse_loss, adam(rate))
        self.decoder = perceptron([32, 64, 64])
        self.step = 0

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the reconstruction."""
        inputs, _ = batch
        temperature = 5.0 * 0.02 ** min(1.0, self.step / 250)
        self.step += self.training
        code = gumbel_softmax(self.network(inputs).view(-1, 4, 8), temperature).flatten(1)
        return mse_loss(self.decoder(code), inputs)


@healthy("annealed samples")
def letters_annealed(seed: int) -> Setup:
    """The letters get harder by and by."""
    return Setup(Discrete(0.003), drawn(digits(), 300, 32))


@exploding("changed units")
def targets_in_another_unit(seed: int) -> Setup:
    """From step 150 on a sensor's inputs come twenty times as large, at a rate that was right before."""
    inputs, targets = diabetes(scaled=True)
    batches = [*drawn((inputs, targets), 150, 32), *drawn((20 * inputs, targets), 250, 32)]
    return Setup(ScenarioModule(perceptron([10, 64, 1]), mse_loss, sgd(0.05, momentum=0.9)), batches)


@healthy("changed units")
def targets_in_a_larger_unit(seed: int) -> Setup:
    """From step 150 on the targets are ten times as large: Adam follows, from a loss a hundred times as high."""
    inputs, targets = diabetes(scaled=True)
    batches = [*drawn((inputs, targets), 150, 32), *drawn((inputs, 10 * targets), 250, 32)]
    return Setup(ScenarioModule(perceptron([10, 64, 1]), mse_loss, adam(0.01)), batches)
