"""Limits of layers, codes, policies with a temperature, slow weights, mixed samples, sorting and rare words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adagrad, Optimizer

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import (
    Block,
    LanguageModel,
    MakeOptimizer,
    ScenarioModule,
    adam,
    perceptron,
    sgd,
)


class _Limited(nn.Module):
    """A perceptron whose layers have a largest singular value of one, times a limit."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.layers = perceptron(sizes)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                spectral_norm(layer)
        self.limit = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        for layer in self.layers:
            inputs = layer(inputs) * self.limit if isinstance(layer, nn.Linear) else layer(inputs)
        return inputs


@healthy("spectral limits")
def limited_layers_with_wrong_labels(seed: int) -> Setup:
    """Digits by layers of a limited size, by AdamW in batches of eight; a fifth of the labels is wrong."""
    network = _Limited([64, 48, 48, 10])
    network.limit = 2.5
    batches = drawn(digits(), 400, 8)
    batches = [(i, torch.where(torch.rand(8) < 0.2, torch.randint(10, (8,)), t)) for i, t in batches]
    return Setup(ScenarioModule(network, cross_entropy, adam(0.005)), batches)


@exploding("spectral limits", begins=60)
def limit_of_layers_raised(seed: int) -> Setup:
    """From step 60 the limit of each of four layers rises by one percent per step."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        network.limit = 1.01 ** max(step - 60, 0)  # type: ignore[assignment]
        return mse_loss(network(batch[0]), batch[1])

    return Setup(ByStep(_Limited([10, 48, 48, 48, 1]), objective, sgd(0.02)), drawn(diabetes(scaled=True), 500, 32))


class _Repeated(nn.Module):
    """A block that is applied several times."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.block = Block(24, normalised)
        self.times = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        for _ in range(self.times):
            inputs = self.block(inputs)
        return inputs


def _deeper(every: int, most: int) -> Any:
    """Return an objective with one more pass through the block every so many steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        network.body.times = min(1 + step // every, most)  # type: ignore[union-attr]
        return cross_entropy(network(batch[0]), batch[1])

    return objective


@healthy("shared layers")
def one_block_ever_more_often(seed: int) -> Setup:
    """A transformer of one block, which is applied once more every 60 steps, by Adam with a fresh state at 180."""
    module = ByStep(
        LanguageModel(text()[1], 24, _Repeated(True)),
        _deeper(60, 6),
        adam(0.004),
        events={180: lambda m: m.optimizers().state.clear()},  # type: ignore[union-attr]
    )
    return Setup(module, lines(360, 8, 16))


@exploding("shared layers")
def one_block_too_often(seed: int) -> Setup:
    """The same without normalization by descent, once more every ten steps: its outputs grow with each pass."""
    module = ByStep(LanguageModel(text()[1], 24, _Repeated(False)), _deeper(10, 40), sgd(0.3))
    return Setup(module, lines(400, 8, 16))


class _Codec(nn.Module):
    """An encoder, a decoder, and the spread that codes are expected to have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = perceptron([64, 48, 12]), perceptron([12, 48, 64])
        self.spread = nn.Parameter(torch.zeros(12))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is decoded from the rounded code, and the number of bits of the code; rounding is noise."""
        code = self.encoder(inputs)
        code = code + torch.rand_like(code) - 0.5
        expected = Normal(0.0, self.spread.exp(), validate_args=False)
        share = expected.cdf(code + 0.5) - expected.cdf(code - 0.5)  # type: ignore[no-untyped-call]
        return self.decoder(code), -share.clamp(min=1e-9).log2().sum(1).mean()


def _coded(weight: Any) -> Any:
    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        decoded, bits = network(batch[0])
        return bits + weight(step) * (decoded - batch[0]).square().sum(1).mean()  # type: ignore[no-any-return]

    return objective


def _distortion(network: nn.Module, batch: Any, step: int) -> Tensor:
    return (network(batch[0])[0] - batch[0]).square().sum(1).mean()  # type: ignore[no-any-return]


@healthy("rate and distortion")
def three_rates_of_bits(seed: int) -> Setup:
    """Digits are compressed; the weight of errors is four times as high from step 150, and again from step 300."""
    module = ByStep(_Codec(), _coded(lambda step: 4.0 ** (1 + step // 150)), adam(0.002), _distortion)
    return Setup(module, drawn(digits(), 450, 32))


@exploding("rate and distortion", begins=50)
def errors_of_codes_weigh_ever_more(seed: int) -> Setup:
    """From step 50 the weight of errors rises by one and a half percent per step, by descent."""
    module = ByStep(_Codec(), _coded(lambda step: 1.015 ** max(step - 50, 0)), sgd(0.005, 0.9), _distortion)
    return Setup(module, drawn(digits(), 500, 32))


class _Soft(nn.Module):
    """Values and a policy of five actions, and the temperature of its entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.policy = perceptron([4, 32, 5]), perceptron([4, 32, 5])
        self.log_temperature = nn.Parameter(torch.zeros(()))


def _critic_error(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the error of values, compared with rewards and the soft values of the next state."""
    states, following, actions, rewards = batch
    with torch.no_grad():
        chances = network.policy(following).softmax(1)  # type: ignore[operator]
        entropy = -(chances * chances.clamp(min=1e-9).log()).sum(1)
        bonus = network.log_temperature.exp() * entropy  # type: ignore[operator]
        later = (chances * network.values(following)).sum(1) + bonus  # type: ignore[operator]
    return mse_loss(network.values(states).gather(1, actions)[:, 0], rewards + 0.9 * later)  # type: ignore[operator]


def _soft(target: float) -> Any:
    """Return the loss of values, policy and temperature, for an entropy that is wanted."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        states = batch[0]
        logarithms = network.policy(states).log_softmax(1)  # type: ignore[operator]
        entropy = -(logarithms.exp() * logarithms).sum(1).mean()
        temperature = network.log_temperature.exp()  # type: ignore[operator]
        gained = (logarithms.exp() * network.values(states).detach()).sum(1).mean()  # type: ignore[operator]
        tempered = network.log_temperature * (entropy.detach() - target)
        total: Tensor = _critic_error(network, batch, step) - gained - temperature.detach() * entropy + tempered
        return total

    return objective


def _moves(steps: int, size: int) -> list[tuple[Tensor, ...]]:
    """Return states, following states, actions and rewards; an action is good if it is that of the largest entry."""
    batches: list[tuple[Tensor, ...]] = []
    for _ in range(steps):
        states, actions = torch.rand(size, 4), torch.randint(5, (size, 1))
        rewards = (states.argmax(1) == actions[:, 0]).float()
        batches.append((states, (states + 0.1 * torch.randn(size, 4)).clamp(0, 1), actions, rewards))
    return batches


@healthy("entropy targets")
def entropy_that_can_be_reached(seed: int) -> Setup:
    """Soft values and a policy by Adam; the temperature falls until the entropy is half of the largest."""
    return Setup(ByStep(_Soft(), _soft(0.8), adam(0.005), _critic_error), _moves(500, 32))


@exploding("entropy targets")
def entropy_out_of_reach(seed: int) -> Setup:
    """The entropy that is wanted is larger than that of chance, so that the temperature rises without end."""
    return Setup(ByStep(_Soft(), _soft(1.8), adam(0.005), _critic_error), _moves(600, 32))


def _lookahead(make: MakeOptimizer, every: int, share: float) -> MakeOptimizer:
    """Return a builder of an optimizer whose weights go back a part of the way every few steps."""

    def build(parameters: Any) -> Optimizer:
        tensors = list(parameters)
        optimizer = make(tensors)
        slow = [tensor.detach().clone() for tensor in tensors]
        taken = 0

        def pull(*_: Any) -> None:
            nonlocal taken
            taken += 1
            if taken % every == 0:
                with torch.no_grad():
                    for tensor, anchor in zip(tensors, slow, strict=True):
                        anchor.lerp_(tensor, share)
                        tensor.copy_(anchor)

        optimizer.register_step_post_hook(pull)
        return optimizer

    return build


@healthy("slow and fast weights")
def half_the_way_back(seed: int) -> Setup:
    """A transformer by Adam at a high rate, whose weights go half of the way back every six steps."""
    network = LanguageModel(text()[1], 24, nn.Sequential(Block(24), Block(24)))
    return Setup(ScenarioModule(network, cross_entropy, _lookahead(adam(0.008), 6, 0.5)), lines(350, 8, 24))


@exploding("slow and fast weights")
def further_than_the_fast_weights(seed: int) -> Setup:
    """Every six steps the weights of a regression go on by one and a half times what they went."""
    network = perceptron([10, 32, 1])
    make = _lookahead(sgd(0.1, 0.5), 6, 2.5)
    return Setup(ScenarioModule(network, mse_loss, make), drawn(diabetes(scaled=True), 500, 64))


@healthy("mixed samples")
def mixed_digits_by_restarts(seed: int) -> Setup:
    """Pairs of digits are mixed, by descent with momentum whose rate is started again every 100 steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        share = torch.distributions.Beta(0.4, 0.4).sample()
        inputs, labels = batch[0], one_hot(batch[1], 10).float()
        mixed = share * inputs + (1 - share) * inputs.roll(1, 0)
        return cross_entropy(network(mixed), share * labels + (1 - share) * labels.roll(1, 0))

    module = ByStep(
        perceptron([64, 64, 32, 10]), objective, sgd(0.2, 0.9), schedule=lambda step: 0.02 ** (step % 100 / 100)
    )
    return Setup(module, drawn(digits(), 400, 16))


@healthy("sorted by networks")
def five_digits_sorted(seed: int) -> Setup:
    """Five digits are put in order by a relaxed permutation, whose temperature falls from 4 to 0.5."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        scores = network(batch[0]).view(-1, 5)
        apart = (scores[:, :, None] - scores[:, None]).abs().sum(2)
        ranks = 5 + 1 - 2 * torch.arange(1, 6)
        order = ((ranks[:, None] * scores[:, None] - apart[:, None]) / 4.0 ** (1 - step / 270)).softmax(2)
        sort = batch[1].view(-1, 5).argsort(1, descending=True)
        return -(order.gather(2, sort[..., None]) + 1e-9).log().mean()  # type: ignore[no-any-return]

    return Setup(ByStep(perceptron([64, 48, 1]), objective, adam(0.003)), drawn(digits(), 400, 60))


@healthy("words by Zipf's law")
def rare_words_by_adagrad(seed: int) -> Setup:
    """The next of two thousand words, most of them rare, from a sparse table, by Adagrad."""
    chances = 1.0 / torch.arange(1, 2001)
    words = torch.multinomial(chances, 400 * 64 * 3, replacement=True).view(400, 64, 3)
    following = torch.where(torch.rand(400, 64) < 0.5, (words[..., 0] * 7 + 1) % 2000, words[..., 2])
    network = nn.Sequential(nn.Embedding(2000, 16, sparse=True), nn.Flatten(), nn.Linear(32, 48), nn.ReLU())
    network.append(nn.Linear(48, 2000))
    batches: list[Batch] = list(zip(words[..., :2], following, strict=True))
    return Setup(ScenarioModule(network, cross_entropy, lambda p: Adagrad(p, lr=0.05)), batches)
