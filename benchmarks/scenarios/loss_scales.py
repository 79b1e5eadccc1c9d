"""Losses of unusual size and noise: tiny, offset, in bits; single samples, accumulation, short runs, dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, Criterion, LanguageModel, ScenarioModule, adam, perceptron, sgd


def scaled_loss(criterion: Criterion, factor: float = 1.0, offset: float = 0.0) -> Criterion:
    """Return a criterion times a factor, plus an offset."""
    return lambda outputs, targets: factor * criterion(outputs, targets) + offset


@healthy("tiny losses")
def billionth_of_a_loss(seed: int) -> Setup:
    """A loss of 1e-9, by Adam with an epsilon to match."""
    module = ScenarioModule(perceptron([10, 32, 1]), scaled_loss(mse_loss, 1e-9), adam(0.003, eps=1e-20))
    return Setup(module, drawn(diabetes(scaled=True), 250, 16))


@exploding("tiny losses")
def billionth_rate_rises(seed: int) -> Setup:
    """The same by gradient descent, with a learning rate that rises by four percent a step."""
    criterion = scaled_loss(mse_loss, 1e-9)
    module = ScenarioModule(perceptron([10, 32, 1]), criterion, sgd(2e7), lambda step: 1.04**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 16))


@healthy("offsets")
def offset_of_a_thousand(seed: int) -> Setup:
    """A loss of about one, and a thousand."""
    module = ScenarioModule(perceptron([10, 32, 1]), scaled_loss(mse_loss, 1.0, 1000.0), adam(0.003))
    return Setup(module, drawn(diabetes(scaled=True), 250, 16))


@healthy("offsets")
def negative_offset(seed: int) -> Setup:
    """A loss of about one, less a million: most of its digits are lost."""
    module = ScenarioModule(perceptron([10, 32, 1]), scaled_loss(mse_loss, 1.0, -1e6), sgd(0.05))
    return Setup(module, drawn(diabetes(scaled=True), 250, 16))


@exploding("offsets")
def offset_rate_too_high(seed: int) -> Setup:
    """A loss less a hundred, by gradient descent at a learning rate that rises."""
    criterion = scaled_loss(mse_loss, 1.0, -100.0)
    module = ScenarioModule(perceptron([10, 32, 1]), criterion, sgd(0.02), lambda step: 1.04**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 16))


@healthy("bits per byte")
def bits_per_byte(seed: int) -> Setup:
    """A small transformer with a warm-up; its loss is in bits per letter."""
    letters = text()[1]
    module = ScenarioModule(
        LanguageModel(letters, 32, nn.Sequential(Block(32), Block(32))),
        scaled_loss(cross_entropy, 1 / math.log(2)),
        adam(0.005, betas=(0.9, 0.95)),
        lambda step: min(1.0, (step + 1) / 40) * (0.1 + 0.9 * max(0.0, 1 - step / 200)),
    )
    return Setup(module, lines(200, 8, 32))


@exploding("bits per byte")
def bits_without_norm(seed: int) -> Setup:
    """Blocks without normalization, by gradient descent with momentum and a learning rate that rises."""
    letters = text()[1]
    body = nn.Sequential(*(Block(32, normalised=False) for _ in range(4)))
    module = ScenarioModule(
        LanguageModel(letters, 32, body),
        scaled_loss(cross_entropy, 1 / math.log(2)),
        sgd(0.02, momentum=0.9),
        lambda step: 1.04**step,
    )
    return Setup(module, lines(200, 8, 32))


@healthy("label smoothing")
def smoothed(seed: int) -> Setup:
    """Labels smoothed by a fifth: the loss has a floor far above zero."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    return Setup(ScenarioModule(perceptron([64, 64, 10]), criterion, sgd(0.3, momentum=0.9)), drawn(digits(), 250, 32))


@exploding("label smoothing")
def smoothed_rate_too_high(seed: int) -> Setup:
    """The same with a learning rate that rises by six percent a step."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    module = ScenarioModule(perceptron([64, 64, 64, 10]), criterion, sgd(0.3), lambda step: 1.06**step)
    return Setup(module, drawn(digits(), 250, 32))


@healthy("single samples")
def one_image_a_step(seed: int) -> Setup:
    """One image a step, by gradient descent."""
    return Setup(ScenarioModule(perceptron([64, 32, 10]), cross_entropy, sgd(0.02)), drawn(digits(), 500, 1))


@healthy("single samples")
def one_patient_a_step(seed: int) -> Setup:
    """One row of a regression a step, by Adam: losses between 1e-6 and ten."""
    return Setup(ScenarioModule(perceptron([10, 16, 1]), mse_loss, adam(0.002)), drawn(diabetes(scaled=True), 500, 1))


@exploding("single samples")
def one_patient_rate_rises(seed: int) -> Setup:
    """One row a step, by gradient descent with a learning rate that rises by two percent a step."""
    module = ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.01), lambda step: 1.02**step)
    return Setup(module, drawn(diabetes(scaled=True), 500, 1))


@healthy("accumulation")
def accumulated(seed: int) -> Setup:
    """Four batches a step."""
    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, sgd(0.3, momentum=0.9))
    return Setup(module, drawn(digits(), 480, 8), {"accumulate_grad_batches": 4})


@exploding("accumulation")
def accumulated_rate_rises(seed: int) -> Setup:
    """Four batches a step, at a learning rate that rises by ten percent a step."""
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01), lambda step: 1.1**step)
    return Setup(module, drawn(diabetes(scaled=True), 480, 8), {"accumulate_grad_batches": 4})


@healthy("short runs")
def thirty_steps(seed: int) -> Setup:
    """Thirty steps of a classification."""
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.01)), drawn(digits(), 30, 32))


@healthy("short runs")
def thirty_noisy_steps(seed: int) -> Setup:
    """Thirty steps of a regression, four rows each."""
    module = ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.03))
    return Setup(module, drawn(diabetes(scaled=True), 30, 4))


@exploding("short runs")
def thirty_steps_too_fast(seed: int) -> Setup:
    """Thirty steps at a learning rate that a regression does not bear."""
    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(1.2))
    return Setup(module, drawn(diabetes(scaled=True), 30, 32))


def noisy(sizes: list[int], share: float) -> nn.Sequential:
    """Build a perceptron with dropout before each layer but the first."""
    layers = list(perceptron(sizes))
    return nn.Sequential(
        *(nn.Sequential(layer, nn.Dropout(share)) if type(layer) is nn.ReLU else layer for layer in layers)
    )


@healthy("dropout")
def nine_tenths_dropped(seed: int) -> Setup:
    """Nine in ten activations are dropped in two layers."""
    return Setup(ScenarioModule(noisy([64, 64, 64, 10], 0.9), cross_entropy, adam(0.003)), drawn(digits(), 300, 16))


@exploding("dropout")
def dropped_rate_too_high(seed: int) -> Setup:
    """Half of the activations of a regression are dropped, at a learning rate that rises."""
    module = ScenarioModule(noisy([10, 64, 64, 1], 0.5), mse_loss, sgd(0.02), lambda step: 1.03**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 16))


class Quantized(nn.Module):
    """A perceptron whose weights are rounded to few levels, with the gradient passed straight through.

    Args:
        sizes: Sizes of the layers.
        bits: Number of bits of a weight.
    """

    def __init__(self, sizes: list[int], bits: int) -> None:
        super().__init__()
        self.layers = perceptron(sizes)
        self.levels = 2 ** (bits - 1) - 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the rounded network."""
        for layer in self.layers:
            if not isinstance(layer, nn.Linear):
                inputs = layer(inputs)
                continue
            step = layer.weight.detach().abs().max() / self.levels
            rounded = layer.weight + ((layer.weight / step).round() * step - layer.weight).detach()
            inputs = torch.nn.functional.linear(inputs, rounded, layer.bias)
        return inputs


@healthy("quantization")
def three_bits(seed: int) -> Setup:
    """Weights of three bits, by Adam."""
    return Setup(ScenarioModule(Quantized([64, 64, 10], 3), cross_entropy, adam(0.002)), drawn(digits(), 280, 32))


@healthy("quantization")
def two_bits_by_descent(seed: int) -> Setup:
    """Weights of two bits, by gradient descent: the loss jumps where a weight changes its level."""
    module = ScenarioModule(Quantized([10, 32, 1], 2), mse_loss, sgd(0.02))
    return Setup(module, drawn(diabetes(scaled=True), 280, 16))


@exploding("quantization")
def quantized_rate_rises(seed: int) -> Setup:
    """Weights of four bits, at a learning rate that rises by four percent a step."""
    module = ScenarioModule(Quantized([10, 32, 32, 1], 4), mse_loss, sgd(0.02), lambda step: 1.04**step)
    return Setup(module, drawn(diabetes(scaled=True), 280, 16))
