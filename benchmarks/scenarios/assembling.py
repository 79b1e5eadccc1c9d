"""Networks of other structures: three-way factors, rotations, chains of tags, clusters, layers that come or go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, Variational, adam, perceptron, sgd


class Factors(nn.Module):
    """Three tables of factors, whose products of three explain the entries of a cube.

    Args:
        size: Length of each side.
        rank: Number of factors.
        scale: Standard deviation of the factors at the start.
    """

    def __init__(self, size: int, rank: int, scale: float) -> None:
        super().__init__()
        self.sides = nn.ParameterList([scale * torch.randn(size, rank) for _ in range(3)])

    def forward(self, places: Tensor) -> Tensor:
        """Return the entries at places, shape ``(batch, 3)``."""
        one, two, three = (side[places[:, number]] for number, side in enumerate(self.sides))
        entries: Tensor = (one * two * three).sum(1)
        return entries


def _cube(steps: int, size: int) -> list[Batch]:
    true = [torch.randn(12, 3) for _ in range(3)]
    batches = []
    for _ in range(steps):
        places = torch.randint(12, (size, 3))
        one, two, three = (side[places[:, number]] for number, side in enumerate(true))
        batches.append((places, (one * two * three).sum(1) + 0.1 * torch.randn(size)))
    return batches


@healthy("three-way tables")
def factors_of_a_cube(seed: int) -> Setup:
    """Factors from a small start: a plateau first, then weights three times as large; losses have heavy tails."""
    return Setup(ScenarioModule(Factors(12, 4, 0.3), mse_loss, adam(0.02)), _cube(300, 32))


@exploding("three-way tables")
def factors_of_a_cube_by_descent(seed: int) -> Setup:
    """By descent with momentum: the slope is of third order in the factors."""
    return Setup(ScenarioModule(Factors(12, 4, 0.7), mse_loss, sgd(3.0, 0.9)), _cube(240, 64))


def _rotations(steps: int, size: int) -> list[Batch]:
    batches = []
    for _ in range(steps):
        matrices = torch.linalg.qr(torch.randn(size, 3, 3))[0]
        points = matrices @ torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 0.7]])
        batches.append((points.flatten(1) + 0.02 * torch.randn(size, 9), matrices))
    return batches


def _orthogonalized(outputs: Tensor, matrices: Tensor) -> Tensor:
    """Return the error of rotations made of two vectors by Gram and Schmidt."""
    one = normalize(outputs[:, :3], dim=1)
    two = normalize(outputs[:, 3:6] - (one * outputs[:, 3:6]).sum(1, keepdim=True) * one, dim=1)
    return mse_loss(torch.stack([one, two], 2), matrices[:, :, :2])


@healthy("rotations")
def rotations_by_two_vectors(seed: int) -> Setup:
    """Rotations from points; vectors next to zero or next to parallel have steep slopes."""
    return Setup(ScenarioModule(perceptron([9, 48, 6]), _orthogonalized, adam(0.005)), _rotations(260, 16))


@exploding("rotations")
def rotations_by_exponentials(seed: int) -> Setup:
    """Rotations as matrix exponentials of matrices that nothing makes antisymmetric, at a high rate."""

    def criterion(outputs: Tensor, matrices: Tensor) -> Tensor:
        return mse_loss(torch.linalg.matrix_exp(outputs.view(-1, 3, 3)), matrices)

    return Setup(ScenarioModule(perceptron([9, 48, 9]), criterion, adam(0.5)), _rotations(200, 32))


class Chain(nn.Module):
    """Scores of five tags at each letter and of each pair of neighbours: a conditional random field."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 16)
        self.score = nn.Linear(16, 5)
        self.pairs = nn.Parameter(torch.zeros(5, 5))

    def forward(self, letters: Tensor) -> Tensor:
        """Return the scores, shape ``(batch, time, 5)``."""
        scores: Tensor = self.score(self.embedding(letters))
        return scores


def _tagged(network: nn.Module, batch: Batch, mean: bool) -> Tensor:
    """Return the negative log-likelihood of the tags of whole lines."""
    assert isinstance(network, Chain)
    scores, tags = network(batch[0]), batch[1]
    own = scores.gather(2, tags[:, :, None]).sum((1, 2)) + network.pairs[tags[:, :-1], tags[:, 1:]].sum(1)
    alpha = scores[:, 0]
    for step in range(1, scores.shape[1]):
        alpha = (alpha[:, :, None] + network.pairs).logsumexp(1) + scores[:, step]
    losses: Tensor = alpha.logsumexp(1) - own
    return losses.mean() if mean else losses.sum()


def _lines_of_tags(steps: int, size: int, lengths: tuple[int, int]) -> list[Batch]:
    letters, count = text()
    kinds = torch.arange(count) % 5
    batches = []
    for _ in range(steps):
        length = int(torch.randint(lengths[0], lengths[1], ()))
        starts = torch.randint(len(letters) - length, (size,))
        pieces = torch.stack([letters[start : start + length] for start in starts])
        batches.append((pieces, kinds[pieces]))
    return batches


@healthy("chains of tags")
def tags_of_lines_of_any_length(seed: int) -> Setup:
    """The loss is summed over each line, and lines have 3 to 30 letters."""
    module = ByStep(Chain(text()[1]), lambda n, b, _: _tagged(n, b, mean=True), adam(0.01))
    return Setup(module, _lines_of_tags(200, 8, (3, 30)))


@exploding("chains of tags")
def tags_summed_over_a_batch(seed: int) -> Setup:
    """The loss is summed over the batch as well, at the rate of a mean, and the rate grows by plan."""
    module = ByStep(
        Chain(text()[1]), lambda n, b, _: _tagged(n, b, mean=False), sgd(0.01, 0.9), schedule=lambda step: 1.08**step
    )
    return Setup(module, _lines_of_tags(200, 16, (10, 20)))


@healthy("clusters")
def clusters_of_codes(seed: int) -> Setup:
    """Codes are pulled to the nearest of ten centers, which follow; centers change hands and the loss jumps."""

    def objective(network: nn.Module, batch: Batch, step: int) -> Tensor:
        encoder, decoder, centers = network.get_submodule("0"), network.get_submodule("1"), network.get_submodule("2")
        codes = encoder(batch[0])
        weight = centers.weight
        assert isinstance(weight, Tensor)
        distances = (codes[:, None] - weight).square().sum(2)
        pull = distances.min(1).values.mean() if step >= 80 else 0.0
        total: Tensor = mse_loss(decoder(codes), batch[0]) + 0.1 * pull
        return total

    network = nn.Sequential(perceptron([64, 32, 8]), perceptron([8, 32, 64]), nn.Linear(8, 10, bias=False))
    return Setup(ByStep(network, objective, adam(0.005)), drawn(digits(), 240, 32))


class Greedy(nn.Module):
    """A stack of layers of which only some first ones are used, each with a head of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(depth)])
        self.heads = nn.ModuleList([nn.Linear(64, 10) for _ in range(depth)])

    def used(self, inputs: Tensor, depth: int) -> Tensor:
        """Return the logits of the head after so many layers; only the last of them is trained."""
        for number in range(depth):
            inputs = self.layers[number](inputs.detach()).relu()
        logits: Tensor = self.heads[depth - 1](inputs)
        return logits


@healthy("greedy layers")
def layers_trained_one_by_one(seed: int) -> Setup:
    """Every sixty steps the next layer and a fresh head begin, and those before them stay as they are."""

    def objective(network: nn.Module, batch: Batch, step: int) -> Tensor:
        assert isinstance(network, Greedy)
        return cross_entropy(network.used(batch[0], 1 + step // 60), batch[1])

    return Setup(ByStep(Greedy(4), objective, sgd(0.2, 0.9)), drawn(digits(), 240, 32))


class RandomDepth(nn.Module):
    """Residual layers of which each is left out at random, with half of them used in the mean."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(depth)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.first(inputs)
        for layer in self.layers:
            if torch.rand(()) < 0.5:
                hidden = hidden + layer(hidden.relu())
        logits: Tensor = self.last(hidden)
        return logits


@healthy("random depth")
def layers_left_out_at_random(seed: int) -> Setup:
    """Gradients of a layer are exactly zero at every second step, and losses jump."""
    return Setup(ScenarioModule(RandomDepth(6), cross_entropy, sgd(0.02, 0.9)), drawn(digits(), 240, 16))


@healthy("running statistics")
def batches_of_two_normalized(seed: int) -> Setup:
    """Batch normalization with two samples: outputs depend on the other sample, and gradients have heavy tails."""
    network = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    return Setup(ScenarioModule(network, cross_entropy, sgd(0.02, 0.9)), drawn(digits(), 240, 2))


@healthy("importance-weighted bounds")
def bound_by_importance(seed: int) -> Setup:
    """Variational codes with the weight of their divergence rising in cycles, in small batches."""
    network = nn.Sequential(perceptron([64, 32, 8]), perceptron([4, 32, 64]))
    batches = [(batch[0], torch.tensor(min(1.0, step % 60 / 30))) for step, batch in enumerate(drawn(digits(), 240, 8))]
    return Setup(Variational(network, mse_loss, adam(0.005)), batches)


class TaskHeads(ScenarioModule):
    """A body that serves tasks in turn, each with a fresh head when its turn comes.

    Args:
        optimizer: Builds the optimizer.
        factor: What the weights of a fresh head are multiplied by.
    """

    def __init__(self, optimizer: MakeOptimizer, factor: float) -> None:
        super().__init__(perceptron([10, 32, 32, 1]), mse_loss, optimizer)
        self.factor = factor

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Replace the head."""
        if batch_idx % 70 == 69:
            head = self.network.get_submodule("4")
            assert isinstance(head, nn.Linear)
            head.reset_parameters()
            with torch.no_grad():
                head.weight.mul_(self.factor)


@healthy("heads in turn")
def fresh_heads_of_usual_size(seed: int) -> Setup:
    """A fresh head every 70 steps on a trained body, in small batches."""
    return Setup(TaskHeads(sgd(0.02, 0.9), 1.0), drawn(diabetes(scaled=True), 280, 8))


@exploding("heads in turn", begins=69)
def fresh_heads_far_too_large(seed: int) -> Setup:
    """The fresh head has weights thirty times the usual size."""
    return Setup(TaskHeads(sgd(0.05, 0.9), 30.0), drawn(diabetes(scaled=True), 280, 16))


@exploding("wide layers")
def wide_layer_at_the_rate_of_a_narrow_one(seed: int) -> Setup:
    """A rate that suits 16 units, with 1024 of them."""
    return Setup(
        ScenarioModule(perceptron([10, 1024, 1]), mse_loss, sgd(0.5, 0.9)), drawn(diabetes(scaled=True), 160, 32)
    )


@healthy("wide layers")
def wide_layer_at_its_own_rate(seed: int) -> Setup:
    """The same layer at a rate for it, in small batches."""
    return Setup(
        ScenarioModule(perceptron([10, 1024, 1]), mse_loss, sgd(0.003, 0.9)), drawn(diabetes(scaled=True), 220, 8)
    )
