"""Runs that explode through time: recurrent networks, and values that are bootstrapped from themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.scenarios.data import lines, sunspots, text, windows
from benchmarks.scenarios.family import Setup, exploding
from benchmarks.scenarios.module import LanguageModel, LastOutput, ScenarioModule, adam, perceptron, sgd


class LinearRecurrence(nn.Module):
    """A recurrent network without an activation: ``h = W h + U x``."""

    def __init__(self, inputs: int, width: int, radius: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.recur = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 1)
        self.activation = activation
        nn.init.orthogonal_(self.recur.weight, gain=radius)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output after the last time step."""
        entered = self.enter(inputs)
        hidden = torch.zeros_like(entered[:, 0])
        for moment in entered.unbind(1):
            hidden = self.activation(self.recur(hidden) + moment)
        outputs: Tensor = self.head(hidden)
        return outputs


@exploding("recurrent", where="network.recur")
def linear_recurrence_200_steps(seed: int) -> Setup:
    """A linear recurrent network just past the unit circle, over 200 time steps."""
    network = LinearRecurrence(1, 16, 1.02, nn.Identity())
    batches = windows(sunspots() / 100, 60, 8, 200)
    return Setup(ScenarioModule(network, mse_loss, sgd(0.001)), batches)


@exploding("language")
def lstm_language_rate_ten(seed: int) -> Setup:
    """A language model with an LSTM on the text of a licence, by gradient descent with a learning rate of ten."""
    _, letters = text()
    network = LanguageModel(letters, 32, nn.LSTM(32, 32, batch_first=True))

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, reduction="sum") / 16

    return Setup(ScenarioModule(network, summed, sgd(10.0)), lines(120, 8, 32))


@exploding("recurrent")
def raw_sunspots(seed: int) -> Setup:
    """A recurrent network with rectified units on the raw numbers of sunspots."""
    network = LastOutput(nn.RNN(1, 32, nonlinearity="relu", batch_first=True), 1)
    return Setup(ScenarioModule(network, mse_loss, sgd(5e-4)), windows(sunspots(), 150, 16, 30))


@exploding("recurrent", begins=60, where="network.recur")
def sequences_grow_longer(seed: int) -> Setup:
    """A curriculum of sequences of 10 years, and from step 60 on of 100, which is more than the recurrence can bear."""
    network = LinearRecurrence(1, 16, 1.05, nn.Identity())
    series = (sunspots() - sunspots().mean()) / sunspots().std()
    batches = windows(series, 60, 16, 10) + windows(series, 60, 16, 100)
    return Setup(ScenarioModule(network, mse_loss, sgd(0.01)), batches)


@exploding("recurrent", where="network.recur")
def radius_too_large(seed: int) -> Setup:
    """A recurrent network with tanh units and a spectral radius of three, whose gradients explode at the start."""
    network = LinearRecurrence(1, 32, 3.0, torch.tanh)
    return Setup(ScenarioModule(network, mse_loss, sgd(0.05)), windows(sunspots(), 200, 16, 40))


class Bootstrapped(ScenarioModule):
    """Learns values from rewards and from its own values of the next state."""

    discount = 0.99

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the squared error of one step's bootstrapping."""
        states, rewards, following = batch
        with torch.no_grad():
            targets = rewards + self.discount * self.network(following)
        return mse_loss(self.network(states), targets)


@exploding("values")
def bootstrapped_values(seed: int) -> Setup:
    """Baird's counterexample: off-policy learning of values with linear features, which diverges slowly."""
    features = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], 1)
    features[6, 6], features[6, 7] = 1.0, 2.0
    network = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 1, 1, 1, 1, 1, 10, 1]) + 0.1 * torch.randn(8))
    states = torch.randint(7, (600, 32))
    batches = [(features[rows], torch.zeros(32, 1), features[6].expand(32, 8)) for rows in states]
    return Setup(Bootstrapped(network, mse_loss, sgd(0.05)), batches)


class Overestimating(Bootstrapped):
    """The same with a discount above one, as a mistyped reward scale amounts to."""

    discount = 1.1


@exploding("values")
def values_above_themselves(seed: int) -> Setup:
    """Values of a network that feed on themselves, since the future is discounted by a factor above one."""
    states = torch.randn(400, 32, 6)
    motion = torch.randn(6, 6) / 6**0.5
    batches = [(state, state[:, :1].square(), state @ motion) for state in states]
    return Setup(Overestimating(perceptron([6, 32, 1]), mse_loss, adam(0.01)), batches)
