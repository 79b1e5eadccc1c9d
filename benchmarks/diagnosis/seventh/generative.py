"""Generative models: flows, adversaries, cells that grow, variational codes."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class DeterminantOfAGlow(Case):
    """A flow that mixes 128 channels; its volume is log(|det|), and the determinant is below the smallest number."""

    # github.com/chaiyujin/glow-pytorch/issues/7
    kinds = ("undefined-operation", "initialization")
    places = ("log", "det", "linalg_det")
    good = 2.5
    by_log = False
    cure = settings(by_log=True)
    cured_by = "slogdet|logdet|orthogonal"
    lr = 2e-3
    steps = 100

    def build(self) -> None:
        self.mixers = nn.ModuleList(nn.Linear(128, 128) for _ in range(2))
        self.scales = nn.ParameterList(nn.Parameter(torch.zeros(128)) for _ in range(2))

    def data(self) -> tuple[Tensor]:
        random = noise(711)
        return (torch.randn(480, 128, generator=random) * (0.5 + torch.rand(128, generator=random)),)

    def volume(self, mixer: Any) -> Tensor:
        weight = mixer.weight
        return torch.linalg.slogdet(weight)[1] if self.by_log else torch.det(weight).abs().log()  # fault

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        code, volume = batch[0], torch.zeros(())
        for mixer, scale in zip(self.mixers, self.scales, strict=True):
            code = mixer(code) * scale.exp()
            volume = volume + self.volume(mixer) + scale.sum()
        return (0.5 * code.square().sum(1).mean() - volume) / 128 + 0.92

    def configure_optimizers(self) -> Any:
        return torch.optim.Adamax(self.parameters(), lr=self.lr)


class JudgeNeverCleared(Case):
    """Adversaries in one loop that clears the generator's gradients twice and the judge's never."""

    # A slip of many loops of adversaries: the backward pass of the generator leaves gradients in the judge as well.
    host = "plain"
    kinds = ("accumulated-gradients",)
    good = 0.6
    clears = False
    cure = settings(clears=True)
    cured_by = "zero_grad"
    lr = 0.02
    steps = 300

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
        self.judge = nn.Sequential(nn.Linear(3, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
        self.criterion = nn.BCEWithLogitsLoss()

    def data(self) -> tuple[Tensor]:
        return (torch.tensor([1.0, -0.5, 0.5]) + 0.6 * torch.randn(640, 3, generator=noise(712)),)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_generator, of_judge = optimizers
        ones, zeros = torch.ones(len(batch[0]), 1), torch.zeros(len(batch[0]), 1)
        of_generator.zero_grad()
        made = self.generator(torch.randn(len(batch[0]), 4))
        loss = self.criterion(self.judge(made), ones)
        watch.loss(loss)
        backward(loss)
        of_generator.step()
        (of_judge if self.clears else of_generator).zero_grad()
        loss = (self.criterion(self.judge(batch[0]), ones) + self.criterion(self.judge(made.detach()), zeros)) / 2
        watch.loss(loss)
        backward(loss)
        of_judge.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=self.lr) for part in (self.generator, self.judge)]

    def score(self) -> float:
        made = self.generator(torch.randn(512, 4, generator=noise(713)))
        return float((made.mean(0) - self.clean()[0].mean(0)).norm())


class GrowingCells(Case):
    """Cells on a grid that follow one learned rule for sixty rounds, from a seed to a picture."""

    # distill.pub/2020/growing-ca: training of such cells is unstable over many rounds
    kinds = ("recurrence", "initialization")
    good = 0.08
    rounds = 60
    cure = settings(rounds=4)
    cured_by = "fewer"
    batch_size = 8
    lr = 2e-3
    steps = 100

    def build(self) -> None:
        self.perceive = nn.Conv2d(8, 24, 3, padding=1, groups=8, bias=False)
        self.rule = nn.Sequential(nn.Conv2d(24, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        seed = torch.randn(160, 1, 8, 8, generator=noise(714))
        return torch.cat([seed, torch.zeros(160, 7, 8, 8)], 1), functional.avg_pool2d(seed, 3, 1, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        cells = batch[0]
        for _ in range(self.rounds):
            cells = cells + self.rule(self.perceive(cells))
        return functional.mse_loss(cells[:, :1], batch[1])


class Encoder(nn.Module):
    """A picture's mean and logarithm of a variance of its code."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Flatten())
        self.mean, self.spread = nn.Linear(128, codes), nn.Linear(128, codes)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(picture)
        return self.mean(hidden), self.spread(hidden)


def divergence(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the divergence of codes from the standard normal distribution, averaged over pictures."""
    return -0.5 * (1 + spread - mean.square() - spread.exp()).sum(1).mean()


class DivergenceRewarded(Case):
    """A variational autoencoder that adds the divergence with a minus: it is rewarded, and has no largest value."""

    # github.com/AntixK/PyTorch-VAE/issues/16 (the field); a sign in user code
    kinds = ("loss-without-floor",)
    good = 0.3
    sign = -1.0
    cure = settings(sign=1.0)
    cured_by = "sign|minus"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encoder = Encoder(4)
        self.decoder = nn.Sequential(nn.Linear(4, 48), nn.ELU(), nn.Linear(48, 64))

    def data(self) -> tuple[Tensor]:
        random = noise(715)
        return (torch.randn(480, 2, generator=random) @ torch.randn(2, 64, generator=random).tanh() * 0.7,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        mean, spread = self.encoder(batch[0].view(-1, 1, 8, 8))
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        return functional.mse_loss(self.decoder(code), batch[0]) + self.sign * 0.01 * divergence(mean, spread)

    def score(self) -> float:
        self.sign = 1.0
        return super().score()


class CodesOfBytes(Case):
    """A variational autoencoder of pictures from 0 to 255: exp of the logarithm of a variance is not finite."""

    # github.com/vanderschaarlab/synthcity/issues/331, github.com/AppliedDataSciencePartners/WorldModels/issues/9
    kinds = ("forward-overflow", "unscaled-data")
    places = ("exp", "spread")
    good = 0.6
    white = 255.0
    cure = settings(white=1.0)
    cured_by = "scale|clamp|divide|normali|bound"
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.encoder = Encoder(6)
        for head in (self.encoder.mean, self.encoder.spread):
            nn.init.xavier_normal_(head.weight)
        self.decoder = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 64))

    def data(self) -> tuple[Tensor]:
        random = noise(716)
        picture = torch.randn(480, 3, generator=random) @ torch.randn(3, 64, generator=random)
        return (self.white * picture.sigmoid(),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        mean, spread = self.encoder(batch[0].view(-1, 1, 8, 8))
        code = mean + torch.randn_like(mean) * torch.exp(spread / 2)
        apart = functional.binary_cross_entropy_with_logits(self.decoder(code), batch[0] / self.white)
        return apart + 0.002 * divergence(mean, spread)
