"""Columns, vectors and the weights of tasks, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SoftmaxAndItsLogarithm(Case):
    """Shares of categories from columns, by a softmax and the categorical cross-entropy of its output.

    Report: github.com/Lasagne/Lasagne/issues/333. Confirmed by the reporter: it trains for more than 200 epochs, and is
    NaN from then on; a softmax and a cross-entropy in logarithms solve it. The run has raw columns, to fail sooner.
    """

    kinds = ("undefined-operation", "unscaled-data")
    places = ("log", "mul", "softmax", "x")
    good = 0.6
    in_logarithms = False
    cure = settings(in_logarithms=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"log_softmax|cross_entropy|clamp|\beps|small (?:value|number)|xlogy"
    batch_size = 64
    lr = 0.02
    steps = 800

    def build(self) -> None:
        self.dense = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.output = nn.Linear(32, 5)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21401)
        kind = torch.randint(5, (960,), generator=generator)
        x = 40 * torch.randn(5, 6, generator=generator)[kind] + 10 * torch.randn(960, 6, generator=generator)
        return {"x": x, "y": functional.one_hot(kind, 5).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.output(self.dense(batch["x"]))
        if self.in_logarithms:
            return -(batch["y"] * x.log_softmax(1)).sum(1).mean()
        return -(batch["y"] * x.softmax(1).log()).sum(1).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


class VectorOfZeros(Case):
    """Vectors of samples by a contrastive loss with cosines, from an encoder that ends with a ReLU.

    Report: github.com/google-deepmind/optax/pull/946. Found by the author of the change: the cosine is NaN where a
    vector is zero, and has an epsilon now.
    """

    kinds = ("undefined-operation",)
    places = ("div", "norm", "linalg_vector_norm", "sqrt")
    good = 5.4
    eps = 0.0
    cure = settings(eps=1e-3)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps|small (?:value|number)|clamp|normalize"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 8), nn.ReLU())

    def data(self) -> dict[str, Tensor]:
        generator = noise(21402)
        labels = torch.randint(4, (640,), generator=generator)
        centers = 1.5 * torch.randn(4, 10, generator=generator)
        return {"x": centers[labels] + torch.randn(640, 10, generator=generator), "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        embeddings, labels = self.encoder(batch["x"]), batch["labels"]
        norm = embeddings.norm(dim=1, keepdim=True).clamp(min=self.eps)
        unit = embeddings / norm  # fault
        itself = torch.eye(len(labels), dtype=torch.bool)
        cosines = (unit @ unit.T / 0.2).masked_fill(itself, -1e9)
        same = (labels[:, None] == labels) & ~itself
        each = (cosines.log_softmax(1) * same).sum(1) / same.sum(1).clamp(min=1)
        return -each.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class WeightsOfTheTasks(Case):
    """Two tasks whose losses are weighted by a learned uncertainty each; one of them is soon learned exactly.

    Report: github.com/QunBB/DeepLearning/issues/1. Confirmed and fixed by the author: an uncertainty can be negative,
    and its logarithm is NaN then; its logarithm is learned instead.
    """

    kinds = ("undefined-operation",)
    places = ("log", "uncertainty_weight")
    host = "plain"
    good = 0.12
    of_logarithms = False
    cure = settings(of_logarithms=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"\blog|softplus|exp\(|positive|clamp"
    batch_size = 64
    lr = 1e-2
    steps = 800

    def build(self) -> None:
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(2))
        start = torch.zeros(2) if self.of_logarithms else torch.ones(2)
        self.uncertainty_weight = nn.Parameter(start)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21403)
        x = torch.randn(1280, 6, generator=generator)
        clicks = torch.zeros(1280)
        stay = x[:, 1] * x[:, 2].tanh() + 0.2 * torch.randn(1280, generator=generator)
        return {"x": x, "y": torch.stack([clicks, stay], 1)}

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        clicks, stay = (tower(batch["x"]) for tower in self.towers)
        predicted = torch.cat([clicks.relu(), stay], 1)
        return (predicted - batch["y"]).square().mean(0)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        weight = self.uncertainty_weight.exp() if self.of_logarithms else self.uncertainty_weight
        logarithm = self.uncertainty_weight if self.of_logarithms else weight.log()  # fault
        return (self.losses(batch) / (2 * weight.square()) + logarithm).sum()

    def score(self) -> float:
        """The sum of the losses without weights."""
        return float(self.losses(self.data()).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
