"""Decisions and tables: replayed experience, logged choices, rankings, treatments, columns, rewards by task metric."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, smooth_l1_loss
from torch.optim import SGD, Adagrad, AdamW

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Replayed(ScenarioModule):
    """Learns values of actions on a ring of twenty places from replayed moves; judged by the moves that are wasted.

    Args:
        optimizer: Builds the optimizer.
        criterion: Loss of values and targets.
        reward: Of the goal.
    """

    def __init__(self, optimizer: MakeOptimizer, criterion: Any, reward: float = 1.0, **options: Any) -> None:
        super().__init__(perceptron([20, 32, 2]), criterion, optimizer, **options)
        self.old = perceptron([20, 32, 2]).requires_grad_(False)
        self.reward = reward

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Copy the network every twenty steps."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % 20 == 0:
            self.old.load_state_dict(self.network.state_dict())

    def loss(self, batch: Batch) -> Tensor:
        """Return the error of the values of actions."""
        place, action = batch
        after = (place + 2 * action - 1) % 20
        reward = self.reward * (after == 0).float()
        best = self.old(nn.functional.one_hot(after, 20).float()).max(1).values
        values = self.network(nn.functional.one_hot(place, 20).float()).gather(1, action[:, None]).squeeze(1)
        loss: Tensor = self.criterion(values, reward + 0.9 * best * (after != 0))
        return loss

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the share of places from which the better action is not the one of the higher value."""
        with torch.no_grad():
            values = self.network(torch.eye(20))
        places = torch.arange(1, 20)
        right = torch.where(places < 10, 0, 1)
        wrong = (values[1:].argmax(1) != right) & (places != 10)
        return float(wrong.float().mean()) + 0.05 if torch.isfinite(values).all() else float("nan")


def _moves(steps: int, size: int) -> list[Batch]:
    return [(torch.randint(1, 20, (size,)), torch.randint(2, (size,))) for _ in range(steps)]


@exploding("replayed experience")
def rewards_of_a_hundred(seed: int) -> Setup:
    """Rewards in another unit, squared errors, and gradient descent at the rate of rewards of one."""
    return Setup(Replayed(sgd(0.3, 0.9), mse_loss, 100.0), _moves(400, 32))


@healthy("replayed experience")
def values_from_replay(seed: int) -> Setup:
    """Targets from an older copy, by Adam: the loss rises while values spread, and the task is learned."""
    return Setup(Replayed(adam(0.01), smooth_l1_loss), _moves(400, 32))


class Logged(ScenarioModule):
    """Learns a policy from logged choices, weighted by their inverse probabilities; judged by the true reward."""

    def loss(self, batch: Any) -> Tensor:
        """Return the negative weighted reward."""
        inputs, labels, choice, chance = batch
        policy = self.network(inputs).softmax(1).gather(1, choice[:, None]).squeeze(1)
        reward = (choice == labels).float() - 0.1
        loss: Tensor = -(policy / chance * reward).mean()
        return loss

    def damage(self, batch: Any, loss: float) -> float:
        """Return the expected share of wrong choices."""
        with torch.no_grad():
            chances = self.network(batch[0]).softmax(1)
        return float(1 - chances.gather(1, batch[1][:, None]).mean())


def _logs(steps: int, size: int, least: float) -> list[Any]:
    batches = []
    for inputs, labels in drawn(digits(), steps, size):
        chances = (2 * torch.randn(size, 10)).softmax(1).clamp(min=least)
        choice = chances.multinomial(1).squeeze(1)
        batches.append((inputs, labels, choice, chances.gather(1, choice[:, None]).squeeze(1)))
    return batches


@exploding("logged choices")
def rare_choices_weigh_thousands(seed: int) -> Setup:
    """Probabilities down to one in ten thousand, whose weights throw gradient descent about."""
    return Setup(Logged(perceptron([64, 64, 10]), cross_entropy, sgd(30.0, 0.9)), _logs(300, 32, 1e-4))


@healthy("logged choices")
def logged_choices(seed: int) -> Setup:
    """Probabilities of at least one percent, by Adam: gradients of heavy tails that do no harm."""
    return Setup(Logged(perceptron([64, 64, 10]), cross_entropy, adam(0.003)), _logs(400, 64, 1e-2))


def _by_pairs(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the exponential loss of all pairs in the wrong order."""
    better = (targets - targets.T > 0).float()
    return ((scores.T - scores).exp() * better).sum() / better.sum()


def _by_list(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of what is ranked first."""
    return cross_entropy(scores.T, (2 * targets).softmax(0).T)


@exploding("rankings")
def pairs_by_exponentials(seed: int) -> Setup:
    """Exponentials of score differences, by gradient descent with momentum: one bad step has no bound."""
    return Setup(ScenarioModule(perceptron([10, 32, 32, 1]), _by_pairs, sgd(0.5, 0.9)), drawn(diabetes(True), 250, 16))


@healthy("rankings")
def lists_by_entropy(seed: int) -> Setup:
    """Lists of thirty-two, by AdamW: little can be learned, and the loss stays where it is."""
    network, optimizer = perceptron([10, 32, 1]), partial(AdamW, lr=0.003, weight_decay=0.1)
    return Setup(ScenarioModule(network, _by_list, optimizer), drawn(diabetes(True), 250, 32))


def _treated(steps: int, size: int) -> list[Any]:
    inputs, targets = diabetes(True)
    batches = []
    for one, outcome in drawn((inputs, targets), steps, size):
        chance = torch.sigmoid(3 * one[:, :1]).clamp(0.003, 0.997)
        treated = (torch.rand_like(chance) < chance).float()
        weight = treated / chance + (1 - treated) / (1 - chance)
        batches.append((torch.cat([one, treated], 1), torch.cat([outcome + treated, weight], 1)))
    return batches


def _weighted_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets[:, :1]).square() * targets[:, 1:]).mean()


@exploding("treatments")
def rare_treatments_by_descent(seed: int) -> Setup:
    """Single patients weigh up to three hundred times as much, at a rate that the others take."""
    return Setup(ScenarioModule(perceptron([11, 48, 48, 1]), _weighted_error, sgd(0.08, 0.9)), _treated(400, 16))


@healthy("treatments")
def rare_treatments(seed: int) -> Setup:
    """The same by Adam."""
    return Setup(ScenarioModule(perceptron([11, 48, 1]), _weighted_error, adam(0.003)), _treated(400, 32))


class Columns(nn.Module):
    """Numbers, and categories by sparse embeddings."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.categories = nn.EmbeddingBag(categories, 8, sparse=True)
        self.body = nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits of two classes."""
        logits: Tensor = self.body(self.categories(rows))
        return logits


@healthy("tables")
def sparse_categories(seed: int) -> Setup:
    """Four of five hundred categories in a row, with sparse gradients, by Adagrad."""
    truth = torch.randn(500)
    rows = (500 * torch.rand(300, 32, 4).square()).long()
    batches = [(one, (truth[one].sum(1) > 0).long()) for one in rows]
    return Setup(ScenarioModule(Columns(500), cross_entropy, partial(Adagrad, lr=0.1)), batches)


@exploding("tables")
def columns_of_money(seed: int) -> Setup:
    """Two columns of heavy tails, as prices have: single rows are a thousand times as large as the others."""
    inputs, targets = diabetes(True)
    batches = []
    for one, target in drawn((inputs, targets), 300, 32):
        money = (2.2 * torch.randn(32, 2)).exp()
        batches.append((torch.cat([one, money], 1), target))
    module = ScenarioModule(perceptron([12, 32, 1]), mse_loss, partial(SGD, lr=0.01, momentum=0.9, nesterov=True))
    return Setup(module, batches)
