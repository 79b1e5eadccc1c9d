"""Faults whose remedy needs a number, a place or a form that the usual one does not have."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class SlopeBetweenPoints(Case):
    """Slopes dy/dx of pairs of points; dx has both signs and is zero in a few rows."""

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.15
    form = "plain"
    cure = settings(form="safe")
    other_cures = settings(
        **{
            r"keep the divisor[^;]*(square\(\) \+|sign)": settings(form="safe"),
            r"keep the divisor.*clamp\(min": settings(form="clamped"),
        }
    )
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, ...]:
        random = noise(1)
        dx = torch.randn(640, 1, generator=random).sign() * (0.5 + torch.rand(640, 1, generator=random))
        slope = torch.randn(640, 1, generator=random)
        dx[torch.arange(40, 640, 97)] = 0.0
        return dx, slope * dx, slope

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        dx, dy, slope = batch
        if self.form == "safe":
            ratio = dy * dx / (dx.square() + 1e-6)
        elif self.form == "clamped":
            ratio = dy / dx.clamp(min=1e-6)
        else:
            ratio = dy / dx  # fault
        target = torch.where(dx == 0, torch.zeros_like(slope), slope)
        return functional.mse_loss(self.net(torch.cat([ratio, dx, dy], 1)), target)


class OutlierIntoAverages(Case):
    """One row of one batch is a million times too large, in a network with BatchNorm, whose averages take it in."""

    kinds = ("outlier-batch",)
    places = ("[0]",)
    rows = (7,)
    good = 0.1
    dirty = True
    cure = settings(dirty=False)
    shuffle = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(3840, 5, generator=noise(4))
        target = inputs[:, :1] * 0.5 + inputs[:, 1:2] * 0.5
        if self.dirty:
            inputs[32 * 90 + 7] *= 1e6
            target[32 * 90 + 7] = 1e4
        return inputs, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])


class BusyCounter(Case):
    """Counts in the thousands by an exponential of the network's output, which overflows for wide inputs."""

    kinds = ("forward-overflow", "unscaled-data")
    places = ("exp",)
    good = -20000.0
    bound = 0.0
    cure = settings(bound=12.0)
    other_cures = settings(**{rf"keep the argument.*?{NUMBER} \* torch\.tanh": settings(bound=float)})
    steps = 300
    lr = 0.02

    def build(self) -> None:
        first, last = nn.Linear(3, 64), nn.Linear(64, 1)
        nn.init.normal_(first.weight, std=6.0)
        nn.init.normal_(last.weight, std=1.5)
        self.net = nn.Sequential(first, nn.ReLU(), last)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(5)
        inputs = torch.randn(640, 3, generator=random)
        return inputs, torch.poisson((8 + 0.5 * inputs[:, :1]).exp(), generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logarithm = self.net(batch[0])
        logarithm = self.bound * torch.tanh(logarithm / self.bound) if self.bound else logarithm
        rate = torch.exp(logarithm)  # fault
        return (rate - batch[1] * logarithm).mean()


class ConstantColumn(Case):
    """Columns in the thousands, one of which never changes: its deviation is zero."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.1
    form = "raw"
    cure = settings(form="safe")
    other_cures = settings(
        **{
            r"standardize it.*(/ \(std \+|std\.clamp)": settings(form="safe"),
            r"standardize it.*/ std": settings(form="plain"),
        }
    )
    steps = 200
    lr = 0.05

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(7))
        target = inputs[:, :1]
        inputs = 3000 + 800 * inputs
        inputs[:, 5] = 4000.0
        if self.form != "raw":
            inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + (1e-6 if self.form == "safe" else 0.0))
        return inputs, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class KernelOfCloseInputs(Case):
    """The log-determinant of a kernel of close inputs, which rounding makes indefinite."""

    kinds = ("undefined-operation",)
    good = 0.25
    jitter, of_diagonal = 0.0, False
    cure = settings(jitter=1e-3)
    other_cures = settings(
        **{
            rf"add a small.*?{NUMBER} \* scale": settings(jitter=float, of_diagonal=True),
            rf"add a small.*?{NUMBER} \* torch\.eye": settings(jitter=float),
        }
    )
    steps = 60
    lr = 0.02
    batch_size = 64

    def build(self) -> None:
        self.length, self.height = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(3.0))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.rand(640, 1, generator=noise(8))
        return inputs, torch.sin(6 * inputs)

    def kernel(self, points: Tensor) -> Tensor:
        """Return the squared exponential kernel."""
        return self.height.exp() * torch.exp(-(points - points.T).square() / (2 * self.length.exp() ** 2))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, values = batch
        kernel = self.kernel(points)
        kernel = kernel + self.jitter * (kernel.diagonal().mean() if self.of_diagonal else 1.0) * torch.eye(len(points))
        fit = (values.T @ torch.linalg.solve(kernel + 1e-2 * torch.eye(len(points)), values)).squeeze()
        return (torch.logdet(kernel) / 64 + 3).square() + fit / 64  # fault

    def score(self) -> float:
        points, values = (one[:64].double() for one in self.data())
        fit = values.T @ torch.linalg.solve(self.kernel(points) + 1e-2 * torch.eye(64).double(), values)
        return float(fit.squeeze() / 64)
