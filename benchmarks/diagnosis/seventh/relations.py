"""Graphs and recommenders, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Factors(nn.Module):
    """Factors of users and of items, whose product is a preference.

    Args:
        sharpness: Factor of the product.
    """

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, 32), nn.Embedding(90, 32)
        self.sharpness = sharpness

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.sharpness * (self.user(user) * self.item(item)).sum(-1)


class LogOfASigmoid(Case):
    """Personalized ranking by the logarithm of a sigmoid, which is zero for an item that is far off."""

    # github.com/maciejkula/triplet_recommendations_keras/issues/1
    kinds = ("undefined-operation",)
    host = "plain"
    places = ("log", "sigmoid")
    good = 8.0
    is_stable = False
    cure = settings(is_stable=True)
    cured_by = "logsigmoid|softplus|clamp"
    batch_size = 128
    lr = 5e-2
    steps = 200

    def build(self) -> None:
        self.factors = Factors(4.0)

    def data(self) -> dict[str, Tensor]:
        random = noise(721)
        user, items = torch.randint(0, 60, (2560,), generator=random), torch.randint(0, 90, (2560, 2), generator=random)
        likes = (items % 6 - user[:, None] % 6).abs()
        order = likes.argsort(1)
        return {
            "user": user,
            "liked": items.gather(1, order[:, :1])[:, 0],
            "other": items.gather(1, order[:, 1:])[:, 0],
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        margin = self.factors(batch["user"], batch["liked"]) - self.factors(batch["user"], batch["other"])
        if self.is_stable:
            return -functional.logsigmoid(margin).mean()
        return -torch.log(torch.sigmoid(margin)).mean()  # fault


class BoldDriver(Case):
    """Factors of a matrix of ratings, with a rate that the loop raises by a tenth whenever the loss has fallen."""

    # github.com/benfred/implicit/issues/281 (the field); the rule of the bold driver without its halving
    kinds = ("learning-rate-jump",)
    host = "plain"
    good = 0.6
    raises = 1.1
    cure = settings(raises=1.0)
    other_cures = settings(**{"learning rate near": settings(raises=1.0)})
    batch_size = 128
    lr = 0.5
    steps = 250

    def build(self) -> None:
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(90, 8)
        self.of_user, self.of_item = nn.Embedding(60, 1), nn.Embedding(90, 1)
        for table in (self.user, self.item, self.of_user, self.of_item):
            nn.init.normal_(table.weight, 0, 0.3)
        self.before = float("inf")

    def data(self) -> dict[str, Tensor]:
        random = noise(722)
        taste, kind = torch.randn(60, 3, generator=random), torch.randn(90, 3, generator=random)
        user, item = torch.randint(0, 60, (2560,), generator=random), torch.randint(0, 90, (2560,), generator=random)
        rating = (taste[user] * kind[item]).sum(1).clamp(-2, 2) + 0.2 * torch.randn(2560, generator=random)
        return {"user": user, "item": item, "rating": rating}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        user, item = batch["user"], batch["item"]
        made = (self.user(user) * self.item(item)).sum(1, keepdim=True) + self.of_user(user) + self.of_item(item)
        return functional.mse_loss(made.squeeze(1), batch["rating"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        loss = self.loss(batch)
        optimizers[0].zero_grad()
        watch.loss(loss)
        backward(loss)
        optimizers[0].step()
        if loss.item() < self.before:
            for group in optimizers[0].param_groups:
                group["lr"] *= self.raises
        self.before = loss.item()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SumOfNeighbours(nn.Module):
    """A layer that adds the features of all neighbours to those of a node.

    Args:
        width: Number of features.
        divides: Whether the sum is divided by the number of neighbours.
    """

    def __init__(self, width: int, divides: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.divides = nn.Linear(width, width), nn.Linear(width, width), divides

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        around = edges @ nodes
        if self.divides:
            around = around / edges.sum(-1, keepdim=True).clamp(min=1)
        return functional.relu(self.outer(nodes) + self.inner(around))


class MessagesSummed(Case):
    """A graph network of eleven layers that sum over twelve neighbours, without a division or a normalization."""

    # github.com/keras-team/keras-io/pull/2304
    kinds = ("depth",)
    good = 1.0
    divides = False
    cure = settings(divides=True)
    cured_by = "normali|divide|mean|average|degree"
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 8
    lr = 1e-3
    steps = 250

    def build(self) -> None:
        self.inside = nn.Linear(4, 24)
        self.layers = nn.ModuleList(SumOfNeighbours(24, self.divides) for _ in range(11))
        self.readout = nn.Linear(24, 3)

    def data(self) -> dict[str, Tensor]:
        random = noise(723)
        features = torch.randn(160, 20, 4, generator=random)
        edges = (torch.rand(160, 20, 20, generator=random) < 0.6).float()
        label = (features[..., 0].mean(1) > 0).long() + (features[..., 1].mean(1) > 0).long()
        return {"features": features, "edges": ((edges + edges.mT) > 0).float(), "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        nodes = self.inside(batch["features"])
        for layer in self.layers:
            nodes = layer(nodes, batch["edges"])
        return functional.cross_entropy(self.readout(nodes.mean(1)), batch["label"])


class BytesOfFlows(Case):
    """Intrusions in a network by a graph network; edges hold bytes and microseconds as they were counted."""

    # github.com/waimorris/E-GraphSAGE (the field); flows of NetFlow records
    kinds = ("unscaled-data",)
    places = ("flow", "flows")
    good = 0.3
    takes_logarithm = False
    cure = settings(takes_logarithm=True)
    cured_by = "log|scale|normali"
    not_cured_by = (settings(lr=1e-4),)
    batch_size = 16
    lr = 5e-2
    steps = 200

    def build(self) -> None:
        self.message = nn.Sequential(nn.Linear(4 + 3, 32), nn.ReLU())
        self.update, self.head = nn.GRUCell(32, 4), nn.Linear(8 + 3, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(724)
        host = torch.randn(320, 10, 4, generator=random)
        flows = (6 + 3 * torch.randn(320, 10, 10, 3, generator=random)).exp()
        label = (flows[..., 0].log() + host[..., :1] > 6).long()
        return {"host": host, "flows": flows.log() / 3 - 2 if self.takes_logarithm else flows, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        host, flows = batch["host"], batch["flows"]
        source = host[:, None].expand(-1, 10, -1, -1)
        sent = self.message(torch.cat([source, flows], -1)).mean(2)
        host = self.update(sent.flatten(0, 1), host.flatten(0, 1)).view_as(host)
        pairs = torch.cat([host[:, None].expand(-1, 10, -1, -1), host[:, :, None].expand(-1, -1, 10, -1), flows], -1)
        return functional.cross_entropy(self.head(pairs).flatten(0, 2), batch["label"].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
