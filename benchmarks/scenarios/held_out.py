"""Families of kinds that were written after the rules of the detectors (``benchmarks.detection --held-out``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, smooth_l1_loss, softplus

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def pinball(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of three quantiles."""
    shares = torch.tensor([0.1, 0.5, 0.9])
    error = targets - outputs
    return torch.maximum(shares * error, (shares - 1) * error).mean()


@healthy("quantiles")
def quantiles(seed: int) -> Setup:
    """Three quantiles of a regression."""
    return Setup(ScenarioModule(perceptron([10, 32, 3]), pinball, adam(0.003)), drawn(diabetes(scaled=True), 250, 16))


@exploding("quantiles")
def quantiles_rate_rises(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by five percent a step."""
    module = ScenarioModule(perceptron([10, 32, 32, 3]), pinball, sgd(0.05), lambda step: 1.05**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 16))


def mixture(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of a mixture of three normal distributions."""
    weights, means, deviations = outputs.chunk(3, 1)
    deviations = softplus(deviations) + 1e-3
    each = weights.log_softmax(1) - deviations.log() - 0.5 * ((targets - means) / deviations).square()
    return -each.logsumexp(1).mean()


@healthy("mixtures")
def mixtures(seed: int) -> Setup:
    """A mixture density of a regression's targets."""
    return Setup(ScenarioModule(perceptron([10, 32, 9]), mixture, adam(0.003)), drawn(diabetes(scaled=True), 250, 32))


@exploding("mixtures")
def mixtures_rate_too_high(seed: int) -> Setup:
    """The same on targets without scaling, by gradient descent."""
    return Setup(ScenarioModule(perceptron([10, 32, 9]), mixture, sgd(3.0)), drawn(diabetes(), 200, 32))


class Ratings(nn.Module):
    """Products of two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, 8), nn.Embedding(60, 8)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return a score for each pair of numbers."""
        scores: Tensor = (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)
        return scores


def _ratings(steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    truth = torch.randn(60, 4) @ torch.randn(4, 60)
    pairs = torch.randint(60, (steps, size, 2))
    return [(one, truth[one[:, 0], one[:, 1]]) for one in pairs]


@healthy("recommendation")
def ratings(seed: int) -> Setup:
    """Ratings by products of embeddings, most of whose rows get no gradient at a step."""
    return Setup(ScenarioModule(Ratings(), smooth_l1_loss, adam(0.02)), _ratings(300, 32))


@healthy("recommendation")
def likes(seed: int) -> Setup:
    """Likes by products of embeddings, one pair a step."""
    batches = [(pairs, (scores > 0).float()) for pairs, scores in _ratings(300, 1)]
    return Setup(ScenarioModule(Ratings(), binary_cross_entropy_with_logits, sgd(0.3)), batches)


@exploding("recommendation")
def ratings_rate_too_high(seed: int) -> Setup:
    """Squared errors by gradient descent, at a learning rate that frequent rows do not bear."""
    return Setup(ScenarioModule(Ratings(), mse_loss, sgd(4.0)), _ratings(300, 32))


class Gated(nn.Module):
    """Stacked gated units, each the input of the next, with the last state as logits of the next letter."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 24)
        self.inner = nn.GRU(24, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, letters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits at each place."""
        outputs: Tensor = self.head(self.inner(self.embedding(inputs))[0])
        return outputs.flatten(0, 1)


@healthy("gated sequences")
def gated(seed: int) -> Setup:
    """Two layers of gated units on text, by Adam."""
    return Setup(ScenarioModule(Gated(text()[1]), cross_entropy, adam(0.005)), lines(150, 8, 24))


@exploding("gated sequences")
def gated_rate_too_high(seed: int) -> Setup:
    """The same by gradient descent with a learning rate of three hundred."""
    return Setup(ScenarioModule(Gated(text()[1]), cross_entropy, sgd(300.0)), lines(120, 8, 24))


class Sparse(ScenarioModule):
    """An autoencoder with a penalty of its code, and a decoder that is the encoder's transpose."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error and the penalty."""
        inputs, _ = batch
        layer = self.network.get_submodule("0")
        code = self.network(inputs).relu()
        restored = code @ layer.weight
        total: Tensor = (restored - inputs).square().sum(1).mean() + 0.1 * code.abs().sum(1).mean()
        return total


@healthy("sparse codes")
def sparse(seed: int) -> Setup:
    """A sparse code of digits."""
    return Setup(Sparse(perceptron([64, 96]), mse_loss, adam(0.003)), drawn(digits(), 250, 32))


@healthy("sparse codes")
def sparse_by_descent(seed: int) -> Setup:
    """The same by gradient descent with momentum, four images a step."""
    return Setup(Sparse(perceptron([64, 96]), mse_loss, sgd(0.002, momentum=0.9)), drawn(digits(), 300, 4))


@exploding("sparse codes")
def sparse_rate_too_high(seed: int) -> Setup:
    """The same with a learning rate that tied weights do not bear."""
    return Setup(Sparse(perceptron([64, 96]), mse_loss, sgd(2.0)), drawn(digits(), 200, 32))


@exploding("sparse codes", begins=80)
def sparse_momentum_raised(seed: int) -> Setup:
    """At step 80 the momentum of a run near its limit is raised above one."""

    def raise_momentum(module: ScenarioModule) -> None:
        optimizer = module.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.param_groups[0]["momentum"] = 1.03

    module = Sparse(perceptron([64, 96]), mse_loss, sgd(0.02, momentum=0.5), events={80: raise_momentum})
    return Setup(module, drawn(digits(), 300, 32))


class Ensemble(nn.Module):
    """Many small networks side by side, whose outputs are added."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(perceptron([10, 8, 1], nn.Tanh) for _ in range(members))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum."""
        return torch.stack([member(inputs) for member in self.members]).sum(0)


@healthy("ensembles")
def ensemble(seed: int) -> Setup:
    """Twelve members by Adam."""
    return Setup(ScenarioModule(Ensemble(12), mse_loss, adam(0.003)), drawn(diabetes(scaled=True), 200, 32))


@exploding("ensembles")
def ensemble_too_many(seed: int) -> Setup:
    """Forty members, whose summed outputs overshoot at the learning rate of one."""
    return Setup(ScenarioModule(Ensemble(40), mse_loss, sgd(0.05)), drawn(diabetes(scaled=True), 200, 32))
