"""Likelihoods, flows and Gaussian processes, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class MixtureByItsDensities(Case):
    """A mixture density network that adds densities up and takes the logarithm: far from all means they are zero."""

    # github.com/keras-team/keras/issues/1061
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 3.7
    in_logarithms = False
    cure = settings(in_logarithms=True)
    cured_by = "logsumexp|clamp"
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.hidden = nn.Sequential(nn.Linear(1, 32), nn.Tanh())
        self.weights, self.means, self.widths = (nn.Linear(32, 5) for _ in range(3))

    def data(self) -> dict[str, Tensor]:
        random = noise(751)
        place = 40 * torch.rand(640, 1, generator=random) - 20
        seen = 7 * (0.35 * place).sin() + 0.5 * place + torch.randn(640, 1, generator=random)
        return {"x": seen / 10, "y": place}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.hidden(batch["x"])
        share, width = self.weights(hidden).softmax(1), self.widths(hidden).exp()
        square = ((batch["y"] - self.means(hidden)) / width).square() / 2
        if self.in_logarithms:
            return -(share.log() - square - width.log() - 0.92).logsumexp(1).mean()
        density = (-square).exp() / (width * 2.5066)
        return -(share * density).sum(1).log().mean()  # fault


class Coupling(nn.Module):
    """An additive coupling layer."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
        self.is_first = is_first

    def forward(self, value: Tensor) -> Tensor:
        left, right = value.chunk(2, 1)
        if self.is_first:
            return torch.cat([left, right + self.net(left)], 1)
        return torch.cat([left + self.net(right), right], 1)


class SecondBetaOfAHundredth(Case):
    """An additive flow with betas=(0.9, 0.01): the squares are those of the last step, the momentum that of ten."""

    # github.com/paultsw/nice_pytorch/issues/2
    kinds = ("optimizer-state",)
    good = 10.5
    second = 0.01
    cure = settings(second=0.999)
    cured_by = "betas"
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.layers = nn.ModuleList(Coupling(number % 2 == 0) for number in range(4))
        self.scale = nn.Parameter(torch.zeros(8))

    def data(self) -> tuple[Tensor]:
        random = noise(752)
        left = torch.randn(640, 4, generator=random)
        return (torch.cat([left, left.square() - 1 + 0.3 * torch.randn(640, 4, generator=random)], 1),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (value,) = batch
        for layer in self.layers:
            value = layer(value)
        value = value * self.scale.exp()
        return (value.square().sum(1) / 2 - self.scale.sum() + 8 * 0.919).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.9, self.second))


class NoiseWithoutABound(Case):
    """A Gaussian process whose variance of the noise is a plain parameter: an eigenvalue turns negative."""

    # github.com/GPflow/GPflow/issues/503 (the field)
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("log",)
    good = -40.0
    is_positive = False
    cure = settings(is_positive=True)
    cured_by = "positive|softplus|exp|clamp|jitter"
    batch_size = 40
    shuffle = False
    lr = 0.03
    steps = 150

    def build(self) -> None:
        self.length, self.variance = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(1.0))
        self.noise = nn.Parameter(torch.tensor(0.05))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(753)
        place = torch.rand(40, 1, generator=random) * 4
        return place, (2 * place).sin() + 0.03 * torch.randn(40, 1, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        place, value = batch
        level = self.noise.square() + 1e-4 if self.is_positive else self.noise
        square = (place - place.T).square() / self.length.square()
        kernel = self.variance.square() * (-square / 2).exp() + level * torch.eye(len(place))
        return (value.T @ torch.linalg.solve(kernel, value)).squeeze() / 2 + torch.linalg.eigvalsh(
            kernel
        ).log().sum() / 2  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class LeverageWithoutALimit(Case):
    """Positions in four shares that maximize the mean return, with nothing against ever larger ones."""

    # stackoverflow.com: losses of the users' own for portfolios, which fall without an end
    kinds = ("loss-without-floor",)
    good = 5.0
    has_limit = False
    cure = settings(has_limit=True)
    cured_by = "tanh|softmax|limit"
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(754)
        signal = torch.randn(640, 8, generator=random)
        gain = 0.2 * signal[:, :4] + torch.randn(640, 4, generator=random)
        return {"signal": signal, "gain": gain}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        position = self.net(batch["signal"])
        return -((position.tanh() if self.has_limit else position) * batch["gain"]).sum(1).mean()

    def score(self) -> float:
        position = self.net(self.clean()["signal"])
        return float((position.tanh() if self.has_limit else position).abs().mean())


class ProportionsOfOne(Case):
    """Shares of visitors who bought something by a Beta distribution; where all or none did, its density has no end."""

    # discuss.pytorch.org: Beta.log_prob is infinite at 0 and 1
    kinds = ("target-out-of-range", "undefined-operation")
    good = 0.0
    inside = 0.0
    cure = settings(inside=0.02)
    cured_by = r"clamp|\beps|between|inside"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ELU(), nn.Linear(32, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(755)
        shop = torch.randn(640, 6, generator=random)
        share = (shop[:, 0] + 0.3 * torch.randn(640, generator=random)).sigmoid()
        share[7::90] = 1.0
        return {"shop": shop, "share": share.clamp(self.inside, 1 - self.inside)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first, second = (functional.softplus(self.net(batch["shop"])) + 0.1).unbind(1)
        spread = torch.distributions.Beta(first, second, validate_args=False)
        return -spread.log_prob(batch["share"]).mean()  # type: ignore[no-untyped-call]


class DensityAboveOne(Case):
    """A Gaussian likelihood of precise readings: the loss falls below zero and settles there. It is right."""

    # github.com/cpmpercussion/keras-mdn-layer/issues/42
    kinds = ("unknown",)
    healthy = True
    good = -0.5
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(756)
        angle = torch.randn(640, 3, generator=random)
        return angle, 0.5 * angle[:, 0].sin() + 0.05 * torch.randn(640, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mean, spread = self.net(batch[0]).unbind(1)
        return functional.gaussian_nll_loss(mean, batch[1], functional.softplus(spread) ** 2, eps=1e-5)
