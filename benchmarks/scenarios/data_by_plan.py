"""Runs whose data change: harder samples, further data sets, other pipelines, rare events, storms, growing sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, mse_loss, relu

from benchmarks.scenarios.by_step import ByStep, error
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def _mistakes(network: nn.Module, batch: Any, step: int) -> Any:
    """Return one plus the share of mistakes, which has a scale whatever the loss."""
    return 1 + (network(batch[0]).argmax(1) != batch[1]).float().mean()


@healthy("hardest samples")
def hardest_samples_from_a_step_on(seed: int) -> Setup:
    """From step 150 on only the four largest of 64 losses count, when most are next to zero."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        losses = cross_entropy(network(batch[0]), batch[1], reduction="none")
        return losses.topk(4).values.mean() if step >= 150 else losses.mean()

    return Setup(ByStep(perceptron([64, 64, 10]), objective, adam(0.003), _mistakes), drawn(digits(), 350, 64))


@exploding("hardest samples", begins=150)
def hardest_samples_to_the_fourth_power(seed: int) -> Setup:
    """From step 150 on the fourth powers of the largest errors count, and descent overshoots."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        errors = (network(batch[0]) - batch[1]).abs().flatten()
        return (3 * errors.topk(4).values).pow(4).mean() if step >= 150 else errors.square().mean()

    return Setup(ByStep(perceptron([10, 32, 1]), objective, sgd(0.05)), drawn(diabetes(scaled=True), 300, 64))


def _faces(steps: int, dimensions: int = 16) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draw two views of points of 20 clusters, and the points' clusters."""
    centers = 2 * torch.randn(20, dimensions)
    batches = []
    for labels in torch.randint(20, (steps, 48)):
        views = [centers[labels] + 0.5 * torch.randn(48, dimensions) for _ in range(2)]
        batches.append((*views, labels))
    return batches


def _margin_loss(network: nn.Module, batch: Any, hardest: bool) -> Tensor:
    one, other, labels = network(batch[0]), network(batch[1]), batch[2]
    one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    distances = torch.cdist(one, other)
    apart = torch.where(labels[:, None] == labels, torch.inf, distances)
    negative = apart.amin(1) if hardest else apart.roll(1, 1).diagonal()
    excess: Tensor = relu(distances.diagonal() - negative + 0.3)
    return excess[excess.isfinite()].mean()


@healthy("hard negatives")
def hard_negatives_from_a_step_on(seed: int) -> Setup:
    """A margin is met by random negatives, so that the loss is almost zero, and then the hardest negatives count."""
    module = ByStep(
        perceptron([16, 48, 8]),
        lambda n, b, s: _margin_loss(n, b, s >= 150),
        adam(0.002),
        lambda n, b, s: 1 + _margin_loss(n, b, True),
    )
    return Setup(module, _faces(320))


@healthy("pipelines")
def pipeline_without_normalization(seed: int) -> Setup:
    """From step 120 on pixels are not divided by 16 any more, which a network with batch normalization survives."""
    network = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    batches = [(16 * x if step >= 120 else x, y) for step, (x, y) in enumerate(drawn(digits(), 280, 32))]
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003)), batches)


@exploding("pipelines", begins=120)
def pipeline_loses_its_normalization(seed: int) -> Setup:
    """From step 120 on inputs come in another unit, a hundred times as large."""
    batches = [(100 * x if step >= 120 else x, y) for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 260, 32))]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.05)), batches)


@healthy("pipelines")
def features_missing_for_a_while(seed: int) -> Setup:
    """Half of the features are zero from step 100 to 160, as a source of data is down."""
    mask = (torch.arange(10) % 2).float()
    batches = [
        (x * mask if 100 <= step < 160 else x, 4 * x[:, :1] + y)
        for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 260, 32))
    ]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02)), batches)


@healthy("pools of data")
def most_uncertain_samples_are_added(seed: int) -> Setup:
    """Training begins on the easy digits 0 and 1, and every 50 steps the next two, which are unknown, are added."""
    inputs, labels = digits()
    batches: list[Batch] = []
    for known in (2, 4, 6, 8, 10):
        rows = labels < known
        batches += drawn((inputs[rows], labels[rows]), 50, 32)
    return Setup(ByStep(perceptron([64, 48, 10]), lambda n, b, s: cross_entropy(n(b[0]), b[1]), sgd(0.3)), batches)


@exploding("pools of data", begins=100)
def data_from_the_web_join(seed: int) -> Setup:
    """From step 100 on one sample in eight is of a set whose inputs and targets have no usual scale."""
    batches = drawn(diabetes(scaled=True), 260, 32)
    for step in range(100, 260):
        inputs, targets = (part.clone() for part in batches[step])
        inputs[:4] *= 30
        targets[:4] = 300 * torch.randn(4, 1)
        batches[step] = inputs, targets
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.03)), batches)


@healthy("rare positives")
def one_positive_in_five_hundred(seed: int) -> Setup:
    """One sample in five hundred is positive: most losses are next to zero, and some a hundred times as large."""
    batches = []
    for inputs in torch.randn(500, 16, 8):
        positive = torch.rand(16, 1) < 0.002
        batches.append((inputs + 2 * positive, positive.float()))
    return Setup(ScenarioModule(perceptron([8, 16, 1]), binary_cross_entropy_with_logits, adam(0.01)), batches)


@exploding("rare positives")
def rare_positives_weighted(seed: int) -> Setup:
    """Rare positives weigh ten thousand times as much, at a rate that fits the rest, without a bound on outputs."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        weights = 1 + 1e4 * batch[1]
        return (weights * (network(batch[0]) - batch[1]).square()).mean()

    batches = []
    for inputs in torch.randn(400, 16, 8):
        positive = torch.rand(16, 1) < 0.004
        batches.append((inputs + 2 * positive, positive.float()))
    return Setup(ByStep(perceptron([8, 16, 1]), objective, sgd(0.02)), batches)


@healthy("storms")
def storms_in_a_stream(seed: int) -> Setup:
    """The size of the noise of a stream is correlated over many steps, and sometimes several times as large."""
    batches, level = [], 0.0
    for inputs in torch.randn(500, 16, 8):
        level = 0.97 * level + 0.24 * float(torch.randn(()))
        batches.append((inputs, inputs[:, :1] + math.exp(0.4 * level) * torch.randn(16, 1)))
    return Setup(ScenarioModule(perceptron([8, 24, 1]), mse_loss, adam(0.002)), batches)


@exploding("storms")
def storms_that_feed_on_themselves(seed: int) -> Setup:
    """Inputs of a stream follow the last step's, with a factor above one, at a rate that fits calm inputs."""
    batches, level = [], 1.0
    for inputs in torch.randn(400, 16, 8):
        level *= math.exp(0.02 + 0.05 * float(torch.randn(())))
        batches.append((level * inputs, inputs[:, :1] + 0.5 * torch.randn(16, 1)))
    return Setup(ScenarioModule(perceptron([8, 24, 1]), mse_loss, sgd(0.02)), batches)


@healthy("missing modes")
def one_mode_of_two_is_missing(seed: int) -> Setup:
    """At every tenth batch, and in a block of 30 steps, the better one of two sources of a sample is missing."""
    batches = []
    for step, (inputs, labels) in enumerate(drawn(digits(), 300, 32)):
        missing = step > 30 and (step % 10 == 0 or 150 <= step < 180)
        batches.append(
            (torch.cat([torch.zeros_like(inputs) if missing else inputs, inputs.square()[:, :8]], 1), labels)
        )
    return Setup(ScenarioModule(perceptron([72, 48, 10]), cross_entropy, adam(0.002)), batches)


def _continued(change: float) -> tuple[nn.Module, list[Batch]]:
    """Return a network that is trained to its end, and batches of a task that changes at step 60."""
    inputs, labels = digits()
    network = perceptron([64, 64, 10])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    batches = [(x, (y + 1) % 10 if step >= 60 else y) for step, (x, y) in enumerate(drawn(digits(), 260, 32))]
    return network, [(change * x if step >= 60 else x, y) for step, (x, y) in enumerate(batches)]


@healthy("continued training")
def labels_renumbered(seed: int) -> Setup:
    """A network of almost no loss is trained further, and from step 60 on the labels are numbered otherwise."""
    network, batches = _continued(1.0)
    module = ByStep(network, lambda n, b, s: cross_entropy(n(b[0]), b[1]), adam(0.003), _mistakes)
    return Setup(module, batches)


@exploding("continued training", begins=60)
def continued_at_a_far_higher_rate(seed: int) -> Setup:
    """As the labels are numbered otherwise, the rate of descent is raised beyond what the network takes."""
    network, batches = _continued(3.0)
    module = ByStep(
        network,
        lambda n, b, s: cross_entropy(n(b[0]), b[1]),
        sgd(0.01),
        lambda n, b, s: 1 + cross_entropy(n(b[0]), b[1]),
        schedule=lambda step: 400.0 if step >= 60 else 1.0,
    )
    return Setup(module, batches)


def _grids(steps: int) -> list[Any]:
    """Draw smooth images at 8, 16 and 32 points a side, ever finer."""
    batches = []
    for step in range(steps):
        side = 8 * 2 ** min(step // 90, 2)
        places = torch.linspace(0, 1, side)
        phase, wave = torch.rand(2, 8, 1, 1, 1), torch.rand(8, 1, 1, 1)
        image = (6 * (wave[:, :, :, 0, None] * places[:, None] + phase[0] * places)).sin()
        batches.append((image + 0.3 * torch.randn(8, 1, side, side), image))
    return batches


@healthy("finer grids")
def pixels_summed_on_finer_grids(seed: int) -> Setup:
    """Images are cleaned of noise at ever finer grids, with the errors of all their pixels summed."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    module = ByStep(network, lambda n, b, s: (n(b[0]) - b[1]).square().sum((1, 2, 3)).mean(), adam(0.002), error)
    return Setup(module, _grids(270))


@exploding("finer grids")
def pixels_summed_by_descent(seed: int) -> Setup:
    """The same at a fixed rate of descent, which is too high for the finest grid."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    module = ByStep(network, lambda n, b, s: (n(b[0]) - b[1]).square().sum((1, 2, 3)).mean(), sgd(0.004), error)
    return Setup(module, _grids(300))


@healthy("growing lists")
def lists_to_rank_grow(seed: int) -> Setup:
    """Lists of documents to be ranked grow from 4 to 64, with the logistic losses of all their pairs summed."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        scores = network(batch[0]).flatten()
        better = batch[1][:, None] > batch[1]
        return (nn.functional.softplus(scores - scores[:, None]) * better).sum() / len(scores)

    batches = []
    for step in range(300):
        inputs = torch.randn(4 + step // 5, 8)
        batches.append((inputs, inputs[:, 0] + 0.5 * torch.randn(len(inputs))))
    module = ByStep(perceptron([8, 24, 1]), objective, adam(0.002), lambda n, b, s: objective(n, b, s) / len(b[0]))
    return Setup(module, batches)


@healthy("growing lists")
def coarse_pictures_first(seed: int) -> Setup:
    """Digits are blurred at first, and sharper and sharper, so that what was learned fits less."""
    inputs, labels = digits()
    images = inputs.view(-1, 1, 8, 8)
    blurred = [nn.functional.interpolate(avg_pool2d(images, size), 8).flatten(1) for size in (8, 4, 2, 1)]
    batches = [batch for stage in blurred for batch in drawn((4 * stage - 2, labels), 70, 32)]
    return Setup(ScenarioModule(perceptron([64, 48, 10]), cross_entropy, sgd(0.2)), batches)
