"""Models without a network: a few parameters of a curve, factors of a table, vectors of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from benchmarks.scenarios.data import Batch, sunspots, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, sgd


class Curve(nn.Module):
    """A decaying oscillation of five parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_of_curve = nn.Parameter(torch.tensor([0.1, 0.1, 1.0, 0.0, 0.0]))

    def forward(self, times: Tensor) -> Tensor:
        """Return the curve."""
        size, decay, speed, phase, offset = self.parameters_of_curve
        curve: Tensor = size * torch.exp(-decay * times) * torch.cos(speed * times + phase) + offset
        return curve


def _decay(steps: int, size: int) -> list[Batch]:
    times = 6 * torch.rand(steps, size, 1)
    values = 8 * torch.exp(-0.3 * times) * torch.cos(1.2 * times + 0.4) + 20
    return list(zip(times, values + 0.2 * torch.randn_like(values), strict=True))


@healthy("few parameters")
def curve_of_five_parameters(seed: int) -> Setup:
    """Five parameters that start next to zero, one of which has to move to 20."""
    return Setup(ScenarioModule(Curve(), mse_loss, adam(0.2)), _decay(300, 32))


@healthy("few parameters")
def curve_by_descent(seed: int) -> Setup:
    """The same curve, by plain descent whose first steps are larger than the parameters."""
    return Setup(ScenarioModule(Curve(), mse_loss, sgd(0.02)), _decay(300, 64))


@exploding("few parameters")
def curve_too_fast(seed: int) -> Setup:
    """The same curve, at a rate a hundred times too high."""
    return Setup(ScenarioModule(Curve(), mse_loss, sgd(2.0, momentum=0.5)), _decay(300, 64))


class Factors(nn.Module):
    """Scores of users and items: the product of their vectors, and a number for each.

    Args:
        users: Number of users.
        items: Number of items.
        width: Length of the vectors.
    """

    def __init__(self, users: int = 60, items: int = 80, width: int = 6) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_level, self.item_level = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for one in (self.users, self.items):
            nn.init.normal_(one.weight, std=0.05)
        for one in (self.user_level, self.item_level):
            nn.init.zeros_(one.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return a score for each pair."""
        user, item = pairs.unbind(1)
        product = (self.users(user) * self.items(item)).sum(1, keepdim=True)
        scores: Tensor = product + self.user_level(user) + self.item_level(item)
        return scores


def _ratings(steps: int, size: int) -> list[Batch]:
    tastes, traits = torch.randn(60, 3), torch.randn(80, 3)
    batches = []
    for _ in range(steps):
        pairs = torch.stack([torch.randint(60, (size,)), torch.randint(80, (size,))], 1)
        scores = (tastes[pairs[:, 0]] * traits[pairs[:, 1]]).sum(1, keepdim=True) + 3
        batches.append((pairs, scores + 0.3 * torch.randn_like(scores)))
    return batches


@healthy("recommenders")
def factors_of_ratings(seed: int) -> Setup:
    """Vectors that start next to zero and grow twentyfold, by descent at a high rate on few rows at a time."""
    return Setup(ScenarioModule(Factors(), mse_loss, sgd(5.0)), _ratings(400, 128))


@exploding("recommenders")
def factors_too_fast(seed: int) -> Setup:
    """The same, at a rate ten times higher."""
    return Setup(ScenarioModule(Factors(), mse_loss, sgd(60.0)), _ratings(300, 128))


class SkipGram(nn.Module):
    """Vectors of letters and of their neighbours, as in word2vec.

    Args:
        letters: Number of letters.
        width: Length of the vectors.
    """

    def __init__(self, letters: int, width: int = 16) -> None:
        super().__init__()
        self.inside, self.outside = nn.Embedding(letters, width), nn.Embedding(letters, width)
        nn.init.uniform_(self.inside.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.outside.weight)

    def forward(self, triples: Tensor) -> Tensor:
        """Return the score of a true and of a drawn neighbour, shape ``(batch, 2)``."""
        middle, true, drawn = triples.unbind(1)
        vector = self.inside(middle)
        return torch.stack([(vector * self.outside(one)).sum(1) for one in (true, drawn)], 1)


def _neighbours(steps: int, size: int) -> list[Batch]:
    letters, count = text()
    batches = []
    for places in torch.randint(len(letters) - 2, (steps, size)):
        triples = torch.stack([letters[places], letters[places + 1], torch.randint(count, (size,))], 1)
        batches.append((triples, torch.tensor([1.0, -1.0]).expand(size, 2)))
    return batches


def _logistic(scores: Tensor, signs: Tensor) -> Tensor:
    return softplus(-scores * signs).sum(1).mean()


@healthy("word vectors")
def vectors_of_letters(seed: int) -> Setup:
    """Skip-gram with negative samples: both tables start next to zero, the rate is in the tens."""
    _, count = text()
    return Setup(ScenarioModule(SkipGram(count), _logistic, sgd(8.0)), _neighbours(400, 64))


@exploding("word vectors")
def vectors_too_fast(seed: int) -> Setup:
    """The same, at a rate at which the vectors run away from each other."""
    _, count = text()
    return Setup(ScenarioModule(SkipGram(count), _logistic, sgd(400.0, momentum=0.9)), _neighbours(300, 64))


@healthy("autoregression")
def sunspots_from_their_past(seed: int) -> Setup:
    """A linear prediction of raw counts of sunspots from nine years, at a rate near what it takes."""
    series = sunspots() / 50
    starts = torch.randint(len(series) - 9, (300, 32))
    batches = [
        (torch.stack([series[s : s + 9] for s in some]), torch.stack([series[s + 9] for s in some])[:, None])
        for some in starts
    ]
    return Setup(ScenarioModule(nn.Linear(9, 1), mse_loss, sgd(0.03)), batches)
