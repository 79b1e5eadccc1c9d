"""Recommenders and policies, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class GraphCollaborativeFiltering(Case):
    """Users and items in a graph, ranked by pairs: the logarithm of a sigmoid that an unlikely pair takes to zero.

    Report: github.com/xiangwang1223/neural_graph_collaborative_filtering/issues/17, the first result of "recommender
    model loss nan solved it was". Confirmed: the loss as ``softplus`` of the negative difference works.
    """

    kinds = ("undefined-operation",)
    places = ("log", "sigmoid")
    host = "plain"
    good = 0.6
    is_stable = False
    cure = settings(is_stable=True)
    cured_by = "softplus|logsigmoid"
    batch_size = 256
    lr = 0.035
    steps = 400
    users, items = 120, 160

    def build(self) -> None:
        self.embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.users + self.items, 64)))
        self.mixing = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.products = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.graph = self._graph()

    def _likes(self) -> Tensor:
        random = noise(11101)
        tastes = torch.randn(self.users, 6, generator=random) @ torch.randn(6, self.items, generator=random)
        return tastes + 1.5 * torch.randn(self.users, self.items, generator=random) > 3.0

    def _graph(self) -> Tensor:
        likes = self._likes().float()
        above = torch.cat([torch.zeros(self.users, self.users), likes], 1)
        whole = torch.cat([above, torch.cat([likes.T, torch.zeros(self.items, self.items)], 1)])
        degree = whole.sum(1).clamp(min=1).rsqrt()
        return degree[:, None] * whole * degree

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        user, liked = self._likes().nonzero().repeat(4, 1).unbind(1)
        return user, liked, torch.randint(self.items, (len(user),), generator=noise(11102))

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        user, liked, other = batch
        nodes: Tensor = self.embedding
        layers = [nodes]
        for mixing, product in zip(self.mixing, self.products, strict=True):
            around = self.graph @ nodes
            nodes = functional.leaky_relu(mixing(around + nodes) + product(around * nodes), 0.2)
            layers.append(nodes)
        users, items = torch.cat(layers, 1).split([self.users, self.items])
        ahead = (users[user] * (items[liked] - items[other])).sum(1)
        if self.is_stable:
            each = functional.softplus(-ahead)
        else:
            likely = torch.sigmoid(ahead)
            each = -torch.log(likely)  # fault
        return each.mean() + 1e-5 * self.embedding.square().sum() / self.batch_size


class MatrixFactorization(Case):
    """Users and items by the product of their factors, learned pair by pair at a rate that the products outgrow.

    Report: github.com/quora/qmf/issues/11, the first result with a cause of "loss goes to minus infinity during
    training bug found". Confirmed: a smaller initial rate works.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.45
    cure = settings(lr=0.15)
    batch_size = 64
    lr = 3.0
    steps = 300
    users, items = 150, 200

    def build(self) -> None:
        self.user, self.item = nn.Embedding(self.users, 30), nn.Embedding(self.items, 30)
        self.bias = nn.Embedding(self.items, 1)
        for table in (self.user, self.item):
            nn.init.uniform_(table.weight, -0.1, 0.1)
        nn.init.zeros_(self.bias.weight)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(11103)
        tastes = torch.randn(self.users, 4, generator=random) @ torch.randn(4, self.items, generator=random)
        user, liked = (tastes > 2.5).nonzero(as_tuple=True)
        return user, liked, torch.randint(self.items, (len(user),), generator=random)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        user, liked, other = batch
        factors, better, worse = self.user(user), self.item(liked), self.item(other)
        ahead = (factors * (better - worse)).sum(1) + (self.bias(liked) - self.bias(other))[:, 0]
        sizes = factors.square().sum(1) + better.square().sum(1) + worse.square().sum(1)
        return (functional.softplus(-ahead) + 0.025 * sizes).sum()

    def score(self) -> float:
        rows = self.clean()
        return float(self.loss(rows)) / len(rows[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)}
