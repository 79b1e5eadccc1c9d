"""Healthy runs whose losses or gradients are noisy, heavy-tailed, or spike and recover."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, ring, spoilt, text
from benchmarks.scenarios.family import Setup, half_precision, healthy
from benchmarks.scenarios.module import Adversaries, LanguageModel, ScenarioModule, adam, perceptron, sgd


@healthy("classification")
def batches_of_one(seed: int) -> Setup:
    """One row a step."""
    return Setup(ScenarioModule(perceptron([64, 32, 10]), cross_entropy, sgd(0.02)), drawn(digits(), 300, 1))


@healthy("classification")
def dropout(seed: int) -> Setup:
    """A wide perceptron that drops half its units at each layer."""
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10), nn.Dropout(0.2))
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.2)), drawn(digits(), 300, 16))


@healthy("bad batches")
def spike_that_recovers(seed: int) -> Setup:
    """Two bad batches, whose inputs are thirty times too large, throw the loss up; Adam brings it down again."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs.mul_(30.0)

    batches = spoilt(spoilt(drawn(digits(), 250, 32), 90, spoil), 170, spoil)
    return Setup(ScenarioModule(perceptron([64, 64, 10], nn.Tanh), cross_entropy, adam(0.003)), batches)


@healthy("bad batches")
def wild_batch_clipped(seed: int) -> Setup:
    """One batch a thousand times too large, which the trainer's clipping makes harmless."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        inputs.mul_(1000.0)

    batches = spoilt(drawn(diabetes(scaled=True), 250, 32), 120, spoil)
    module = ScenarioModule(perceptron([10, 32, 1], nn.Tanh), mse_loss, sgd(0.02))
    return Setup(module, batches, {"gradient_clip_val": 1.0})


@healthy("values")
def policy_gradient(seed: int) -> Setup:
    """A policy learns by REINFORCE: the loss crosses zero at will, and gradients have heavy tails."""
    network = perceptron([8, 32, 4], nn.Tanh)
    states = torch.randn(300, 16, 8)
    best = torch.randn(8, 4)

    def reinforce(outputs: Tensor, states_seen: Tensor) -> Tensor:
        actions = torch.multinomial(outputs.softmax(1), 1)
        reward = (states_seen @ best).gather(1, actions) + torch.randn(len(actions), 1) ** 3
        chosen: Tensor = outputs.log_softmax(1).gather(1, actions)
        return -(chosen * reward).mean()

    return Setup(ScenarioModule(network, reinforce, adam(0.01)), [(state, state) for state in states])


@healthy("regression")
def heavy_tails(seed: int) -> Setup:
    """A regression whose noise is Student's t with three degrees of freedom, so that single batches stand far out."""
    generator = np.random.default_rng(seed)
    inputs = torch.randn(400, 8, 10)
    noise = torch.from_numpy(generator.standard_t(3.0, (400, 8, 1))).float()
    targets = inputs @ torch.randn(10, 1) + noise
    return Setup(ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(0.005)), list(zip(inputs, targets, strict=True)))


@healthy("classification")
def rare_class(seed: int) -> Setup:
    """Nine batches in ten hold one class only, and are soon easy; the tenth holds the rare ones."""
    inputs, labels = digits()
    zeros = labels == 0
    common = drawn((inputs[zeros], labels[zeros]), 300, 16)
    rare = drawn((inputs, labels), 300, 16)
    batches = [rare[step] if step % 10 == 5 else common[step] for step in range(300)]
    return Setup(ScenarioModule(perceptron([64, 32, 10]), cross_entropy, sgd(0.02)), batches)


@healthy("classification")
def label_noise(seed: int) -> Setup:
    """A third of the labels are wrong."""
    inputs, labels = digits()
    wrong = torch.where(torch.rand(len(labels)) < 1 / 3, torch.randint(10, (len(labels),)), labels)
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.01)), drawn((inputs, wrong), 300, 16))


@healthy("adversarial")
def stable_adversaries(seed: int) -> Setup:
    """A generator and a discriminator that keep each other in balance, by manual optimization."""
    return Setup(Adversaries(0.002, 0.001, limited=True), ring(250, 64))


@healthy("language")
def lstm_clipped(seed: int) -> Setup:
    """A language model with an LSTM at a high learning rate, kept in order by clipping."""
    _, letters = text()
    module = ScenarioModule(LanguageModel(letters, 32, nn.LSTM(32, 32, batch_first=True)), cross_entropy, sgd(2.0))
    return Setup(module, lines(150, 8, 32), {"gradient_clip_val": 0.5})


@healthy("half precision")
def overflows_while_settling(seed: int) -> Setup:
    """Float16 with an adapting scale that begins far too high: the first steps overflow and are skipped."""
    module = ScenarioModule(perceptron([64, 32, 10]), cross_entropy, sgd(0.2))
    return Setup(module, drawn(digits(), 150, 32), {"plugins": [half_precision(2.0**24, adapts=True)]})


@healthy("half precision")
def scale_found_anew(seed: int) -> Setup:
    """Float16 with an adapting scale, which one very large batch makes overflow in the middle of the run."""

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        targets.mul_(1000.0)

    module = ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02))
    batches = spoilt(drawn(diabetes(scaled=True), 150, 32), 80, spoil)
    return Setup(module, batches, {"plugins": [half_precision(2.0**14, adapts=True)]})
