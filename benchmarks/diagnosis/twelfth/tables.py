"""Graphs, series, counts and distances, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class WeightedDegrees(Case):
    """Regions of brains in a graph of correlations, some of them negative; degrees are sums of the correlations.

    Report: github.com/pyg-team/pytorch_geometric/issues/61. Confirmed: the inverse root of a degree needs weights that
    are positive; infinities were set to zero, NaN was not.
    """

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.55
    takes_sizes = False
    cure = settings(takes_sizes=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"abs|negative|positive"
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.first, self.second, self.last = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(12401)
        label = torch.randint(2, (512,), generator=random)
        weight = 0.2 + 0.5 * torch.randn(512, 10, 10, generator=random)
        weight = ((weight + weight.mT) / 2).clamp(-1, 1)
        weight.diagonal(dim1=1, dim2=2).fill_(1.0)
        region = torch.randn(512, 10, 6, generator=random) + 0.35 * label[:, None, None]
        return {"region": region, "weight": weight, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        weight = batch["weight"]
        degree = weight.abs().sum(2) if self.takes_sizes else weight.sum(2)
        inverse = degree.pow(-0.5)  # fault
        inverse = inverse.masked_fill(inverse == torch.inf, 0.0)
        moved = inverse[..., None] * weight * inverse[:, None]
        hidden = (moved @ self.first(batch["region"])).relu()
        hidden = (moved @ self.second(hidden)).relu()
        return functional.cross_entropy(self.last(hidden.mean(1)), batch["label"])


class PercentageOfNothing(Case):
    """Sales by a symmetric percentage error; where sales and forecast are zero, NaN is left out after the division.

    Report: github.com/pytorch/pytorch/issues/22820. Confirmed: elements that are left out after a division of zero by
    zero still have NaN as their slope.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    host = "plain"
    good = 0.55
    fills_first = False
    cure = settings(fills_first=True)
    not_cured_by = (settings(lr=1e-5),)
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Linear(14, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 7), nn.ReLU()
        )
        self.level = nn.Parameter(torch.ones(7))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12402)
        level = 1 + 3 * torch.rand(640, 1, generator=random)
        days = torch.arange(21) + torch.randint(7, (640, 1), generator=random)
        sales = level * (1 + 0.8 * (days * 2 * torch.pi / 7).sin()) + 0.1 * torch.randn(640, 21, generator=random)
        sales = sales * (days % 7 != 6)
        return sales[:, :14], sales[:, 14:]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        forecast, sales = self.level * self.net(batch[0]), batch[1]
        apart, size = (forecast - sales).abs(), forecast.abs() + sales.abs()
        if self.fills_first:
            return (apart / size.masked_fill(size == 0, 1.0)).mean()
        share = apart / size  # fault
        return share[~share.isnan()].mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class NoTripletLeft(Case):
    """Faces by triplets; the loss is averaged over those that are still wrong, of which at last there are none.

    Report: github.com/KevinMusgrave/pytorch-metric-learning/issues/107. Confirmed: the number of wrong triplets is
    zero.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    host = "plain"
    good = 0.1
    fewest = 0
    cure = settings(fewest=1)
    cured_by = "zero|count|number of"
    batch_size = 24
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 8))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12403)
        person = torch.randint(6, (480,), generator=random)
        faces = torch.randn(6, 12, generator=random)
        return faces[person] + 0.2 * torch.randn(480, 12, generator=random), person

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        place, person = self.net(batch[0]), batch[1]
        far = (place[:, None] - place).square().sum(2)
        same = person[:, None] == person
        wanted = (same & ~torch.eye(len(person), dtype=torch.bool))[:, :, None] & ~same[:, None, :]
        wrong = (far[:, :, None] - far[:, None, :] + 1).relu() * wanted
        return wrong.sum() / (wrong > 0).sum().clamp(min=self.fewest)  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DispersionOfZero(Case):
    """Counts of genes by a negative binomial, the inverse dispersion of which may be exactly zero.

    Report: github.com/cellarium-ai/cellarium-ml/pull/171. Confirmed: the case of a zero is to be treated separately,
    where the logarithm of the gamma function is infinite.
    """

    kinds = ("undefined-operation",)
    places = ("lgamma", "log")
    host = "plain"
    good = 2.6
    smallest = 0.0
    cure = settings(smallest=1e-3)
    cured_by = r"softplus|zero|positive"
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.encode = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.mean, self.inverse = nn.Linear(32, 16), nn.Linear(32, 16)
        nn.init.constant_(self.inverse.bias, 1.0)

    def data(self) -> tuple[Tensor]:
        random = noise(12404)
        kind = torch.randint(4, (640,), generator=random)
        level = torch.rand(4, 16, generator=random).mul(2.5).exp()[kind]
        spread = torch.distributions.Gamma(0.7, 0.7)
        torch.manual_seed(12404)
        return (torch.poisson(level * spread.sample((640, 16)), generator=random),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (count,) = batch
        hidden = self.encode((1 + count).log())
        mean, inverse = self.mean(hidden).exp(), self.inverse(hidden).relu().clamp(min=self.smallest)
        total = (mean + inverse).log()
        found = (count + inverse).lgamma() - inverse.lgamma() - (count + 1).lgamma()  # fault
        return -(found + inverse * (inverse.log() - total) + count * (mean.log() - total)).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
