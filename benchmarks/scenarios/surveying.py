"""Models of measured things: sets, epidemics, cameras, pupils, markets, facts and slopes."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import StudentT
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, mse_loss, softplus

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import Batch
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import adam, perceptron, sgd


def _points(steps: int, size: int) -> list[Batch]:
    """Return images of 8 by 8 pixels with three blurred points each, and the places of the points."""
    places = torch.rand(steps, size, 3, 2)
    pixels = (torch.arange(8) + 0.5) / 8
    blurred = (-((places[..., None] - pixels) ** 2) / 0.02).exp()
    images = (blurred[..., 0, :, None] * blurred[..., 1, None, :]).sum(2).flatten(2)
    return list(zip(images, places, strict=True))


def _matched(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the error of three predicted places, each compared with another true one: the best assignment."""
    found = network(batch[0]).view(-1, 3, 2)
    errors = [(found[:, list(order)] - batch[1]).square().sum((1, 2)) for order in permutations(range(3))]
    return torch.stack(errors).min(0).values.mean()


@healthy("sets matched")
def points_with_dropout_matched(seed: int) -> Setup:
    """Three points in an image are found in any order by Adam, with dropout; the rate falls at step 250."""
    network = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 6)
    )
    module = ByStep(network, _matched, adam(0.003), schedule=lambda step: 1.0 if step < 250 else 0.1)
    return Setup(module, _points(400, 16))


@exploding("sets matched")
def points_matched_by_an_endless_warmup(seed: int) -> Setup:
    """The same by descent with momentum, whose linear warm-up is never ended."""
    module = ByStep(perceptron([64, 96, 48, 6]), _matched, sgd(0.004, 0.9), schedule=lambda step: 1.0 + step)
    return Setup(module, _points(500, 16))


class _Growth(nn.Module):
    """The daily growth of a number of cases, from features of a region."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = perceptron([5, 16, 1], nn.Tanh)

    def forward(self, features: Tensor, days: int) -> Tensor:
        """Return the logarithm of the cases on each day."""
        return self.rates(features) * torch.arange(1, days + 1)  # type: ignore[no-any-return]


def _regions(steps: int, size: int, days: int) -> list[Batch]:
    """Return features of regions, and the logarithm of cases on each day, counted with errors of a tenth."""
    features = torch.randn(steps, size, 5)
    rates = 0.08 + 0.03 * features[..., :1] - 0.02 * features[..., 1:2] * features[..., 2:3]
    cases = rates * torch.arange(1, days + 1) + 0.1 * StudentT(3.0).sample((steps, size, days))
    return list(zip(features, cases, strict=True))


@healthy("epidemics")
def growth_of_cases_in_logarithms(seed: int) -> Setup:
    """Logarithms of cases with errors of long tails, of ever more days: ten more every 80 steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        days = 10 + 10 * min(step // 80, 3)
        return mse_loss(network(batch[0], days), batch[1][:, :days])

    return Setup(ByStep(_Growth(), objective, adam(0.002)), _regions(400, 8, 40))


@exploding("epidemics")
def growth_of_cases_day_by_day(seed: int) -> Setup:
    """Cases themselves, not their logarithms, by descent; one more day every eight steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        days = 5 + min(step // 8, 55)
        return mse_loss(network(batch[0], days).exp(), batch[1][:, :days].exp())

    return Setup(ByStep(_Growth(), objective, sgd(0.003)), _regions(480, 16, 60))


class _Cameras(nn.Module):
    """Places of points and of cameras that look along the third axis; both are learned from pictures."""

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(40, 3) * 0.1 + torch.tensor([0.0, 0.0, depth]))
        self.cameras = nn.Parameter(torch.randn(12, 3) * 0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return where each pair of point and camera is in the picture."""
        seen = self.points[pairs[:, 0]] - self.cameras[pairs[:, 1]]
        return seen[:, :2] / seen[:, 2:]


def _pictures(steps: int, size: int, depth: float, wrong: float) -> list[Batch]:
    """Return pairs of points and cameras with the places seen, a share of which are those of another point."""
    points = torch.randn(40, 3) + torch.tensor([0.0, 0.0, depth])
    cameras = 0.5 * torch.randn(12, 3)
    batches = []
    for _ in range(steps):
        pairs = torch.stack([torch.randint(40, (size,)), torch.randint(12, (size,))], 1)
        true = torch.where(torch.rand(size) < wrong, torch.randint(40, (size,)), pairs[:, 0])
        seen = points[true] - cameras[pairs[:, 1]]
        batches.append((pairs, seen[:, :2] / seen[:, 2:] + 0.01 * torch.randn(size, 2)))
    return batches


@healthy("cameras and points")
def wrong_pairs_in_pictures(seed: int) -> Setup:
    """Points and cameras by Adam and Huber's loss; one in twenty pairs is wrong."""
    module = ByStep(_Cameras(5.0), lambda n, b, s: huber_loss(n(b[0]), b[1], delta=0.2), adam(0.02))
    return Setup(module, _pictures(400, 48, 5.0, 0.05))


@exploding("cameras and points")
def points_pass_through_a_camera(seed: int) -> Setup:
    """The same near the cameras, with momentum and a rising rate: a point behind a camera has passed infinity."""
    module = ByStep(
        _Cameras(1.5), lambda n, b, s: mse_loss(n(b[0]), b[1]), sgd(0.5, 0.9), schedule=lambda step: 1.02**step
    )
    return Setup(module, _pictures(400, 48, 3.0, 0.0))


class _Answers(nn.Module):
    """How well pupils do, and how difficult and telling questions are."""

    def __init__(self) -> None:
        super().__init__()
        self.pupil = nn.Embedding(100, 2)
        self.telling = nn.Embedding(60, 2)
        self.easy = nn.Embedding(60, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the logit of a right answer."""
        fits = self.pupil(pairs[:, 0]) * self.telling(pairs[:, 1])
        return (fits.sum(1, keepdim=True) + self.easy(pairs[:, 1])).flatten()  # type: ignore[no-any-return]


def _answers(steps: int, size: int) -> list[Batch]:
    pupils, telling, easy = torch.randn(100, 2), torch.rand(60, 2) + 0.5, torch.randn(60)
    batches = []
    for _ in range(steps):
        pairs = torch.stack([torch.randint(100, (size,)), torch.randint(60, (size,))], 1)
        logits = (pupils[pairs[:, 0]] * telling[pairs[:, 1]]).sum(1) + easy[pairs[:, 1]]
        batches.append((pairs, torch.bernoulli(logits.sigmoid())))
    return batches


@healthy("answers of pupils")
def few_answers_at_a_time(seed: int) -> Setup:
    """Answers of pupils, eight at a time, by Adam: most rows of the tables have no gradient at a step."""
    module = ByStep(_Answers(), lambda n, b, s: binary_cross_entropy_with_logits(n(b[0]), b[1]), adam(0.02))
    return Setup(module, _answers(500, 8))


@exploding("answers of pupils")
def answers_summed_with_a_rising_rate(seed: int) -> Setup:
    """The error of 256 answers is summed, and the rate of the descent rises by one percent per step."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return binary_cross_entropy_with_logits(network(batch[0]), batch[1], reduction="sum")

    return Setup(ByStep(_Answers(), objective, sgd(0.02), schedule=lambda step: 1.01**step), _answers(600, 256))


def _market(steps: int, size: int) -> list[Batch]:
    """Return what is known of six shares, and returns with long tails, twice as large in the second half."""
    known = torch.randn(steps, size, 6)
    noise = StudentT(3.0).sample((steps, size, 6))
    wild = torch.where(torch.arange(steps) < steps // 2, 1.0, 2.0)[:, None, None]
    returns = (0.004 * known + 0.012 * noise * wild).clamp(min=-0.9)
    return list(zip(known, returns, strict=True))


@healthy("portfolios")
def shares_of_wealth(seed: int) -> Setup:
    """Wealth is divided between shares for the highest expected growth: a loss near zero, mostly noise."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return -(network(batch[0]).softmax(1) * batch[1]).sum(1).log1p().mean()  # type: ignore[no-any-return]

    return Setup(ByStep(perceptron([6, 24, 6]), objective, adam(0.003)), _market(500, 32))


@exploding("portfolios")
def wealth_on_credit(seed: int) -> Setup:
    """The same on credit without a limit: positions grow until a return takes more than everything."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return -(network(batch[0]) * batch[1]).sum(1).log1p().mean()  # type: ignore[no-any-return]

    return Setup(ByStep(perceptron([6, 24, 6]), objective, adam(0.01)), _market(500, 32))


@healthy("volatile returns")
def variance_of_returns(seed: int) -> Setup:
    """A recurrent network gives the variance of the next return, whose tails are long: single losses are huge."""

    class Variance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.GRU(1, 12, batch_first=True), nn.Linear(12, 1)

        def forward(self, returns: Tensor) -> Tensor:
            variance: Tensor = softplus(self.head(self.recurrent(returns[:, :-1])[0])) + 0.05
            return (variance.log() + returns[:, 1:].square() / variance).mean()

    calm = torch.ones(350, 8, 1)
    returns = []
    for draw in StudentT(3.0).sample((30, 350, 8, 1)):
        returns.append(calm.sqrt() * draw / 3**0.5)
        calm = 0.05 + 0.15 * returns[-1].square().clamp(max=40) + 0.8 * calm
    batches = list(torch.stack(returns, 2)[..., 0])
    return Setup(ByStep(Variance(), lambda n, b, s: n(b[..., None]), adam(0.005)), batches)


class _Facts(nn.Module):
    """Vectors of entities and relations; a fact is the sum of the product of three."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.entities, self.relations = nn.Embedding(80, 12), nn.Embedding(6, 12)
        for table in (self.entities, self.relations):
            nn.init.normal_(table.weight, std=size)

    def forward(self, facts: Tensor) -> Tensor:
        """Return how likely each fact is, as a logit."""
        head, tail = self.entities(facts[:, 0]), self.entities(facts[:, 2])
        return (head * self.relations(facts[:, 1]) * tail).sum(1)  # type: ignore[no-any-return]


def _facts(steps: int, size: int, hard_from: int) -> list[Batch]:
    """Return facts, half of them false; from a step on the false ones differ from true ones in one place only."""
    entities, relations = torch.randn(80, 4), torch.randn(6, 4)
    strength = torch.einsum("ak,rk,bk->arb", entities, relations, entities)
    true = (strength > 2.0).nonzero()
    batches = []
    for step in range(steps):
        right = true[torch.randint(len(true), (size // 2,))]
        wrong = right.clone()
        wrong[:, 2] = torch.randint(80, (size // 2,))
        if step < hard_from:
            wrong[:, 0], wrong[:, 1] = torch.randint(80, (size // 2,)), torch.randint(6, (size // 2,))
        facts = torch.cat([right, wrong])
        batches.append((facts, (strength[facts[:, 0], facts[:, 1], facts[:, 2]] > 2.0).float()))
    return batches


@healthy("knowledge graphs")
def harder_false_facts(seed: int) -> Setup:
    """Facts are told from false ones by Adam; from step 200 the false ones are harder to tell."""
    module = ByStep(_Facts(0.5), lambda n, b, s: binary_cross_entropy_with_logits(n(b[0]), b[1]), adam(0.02))
    return Setup(module, _facts(400, 64, 200))


@exploding("knowledge graphs")
def facts_as_products_of_three(seed: int) -> Setup:
    """Facts as numbers of 0 and 1 by squared errors: products of three grow faster than descent can follow."""
    module = ByStep(
        _Facts(0.3), lambda n, b, s: (n(b[0]) - b[1]).square().sum(), sgd(0.03), schedule=lambda s: 1.005**s
    )
    return Setup(module, _facts(600, 64, 600))


class _Slopes(ByStep):
    """A module whose loss contains derivatives of the network."""

    needs_gradients = True


def _slopes(weight: float, growth: float, begins: int) -> Any:
    """Return an objective: errors of values, and from a step on weighted errors of slopes."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        inputs = batch.clone().requires_grad_()
        outputs = network(inputs)
        values = mse_loss(outputs[:, 0], (2 * batch).sin().sum(1))
        if step < begins:
            return values
        (slopes,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return values + weight * growth ** (step - begins) * mse_loss(slopes, 2 * (2 * batch).cos())

    return objective


def _value_error(network: nn.Module, batch: Any, step: int) -> Tensor:
    return mse_loss(network(batch)[:, 0], (2 * batch).sin().sum(1))


@healthy("derivatives as targets")
def slopes_join_the_values(seed: int) -> Setup:
    """A function is learned from its values, from step 150 also from its slopes."""
    module = _Slopes(perceptron([2, 32, 32, 1], nn.Tanh), _slopes(1.0, 1.0, 150), adam(0.003), _value_error)
    return Setup(module, [4 * torch.rand(32, 2) - 2 for _ in range(350)])


@exploding("derivatives as targets", begins=60)
def slopes_weigh_ever_more(seed: int) -> Setup:
    """From step 60 slopes count, at a weight that rises by two percent per step, by descent."""
    module = _Slopes(perceptron([2, 32, 32, 1], nn.Tanh), _slopes(0.1, 1.02, 60), sgd(0.03, 0.5), _value_error)
    return Setup(module, [4 * torch.rand(32, 2) - 2 for _ in range(500)])
