"""Autoencoders and likelihoods, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PixelsOfCertainty(Case):
    """A variational autoencoder of binary pictures, with the logarithms of the decoder's probabilities."""

    # github.com/hwalsuklee/tensorflow-mnist-VAE/issues/4
    kinds = ("undefined-operation",)
    places = ("log", "mul")
    good = 30.0
    uses_logits = False
    cure = settings(uses_logits=True)
    cured_by = r"logit|clamp|\beps"
    lr = 2e-2
    steps = 200

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ELU(), nn.Linear(64, 64))

    def data(self) -> tuple[Tensor]:
        place = torch.randint(1, 6, (640, 2), generator=noise(8401))
        line = torch.arange(8)
        rows, columns = (line - place[:, :1]).abs() < 2, (line - place[:, 1:]).abs() < 2
        return ((rows[:, :, None] & columns[:, None]).flatten(1).float(),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (pixels,) = batch
        mean, spread = self.encoder(pixels).chunk(2, 1)
        spread = functional.softplus(spread) + 1e-6
        scores = self.decoder(mean + spread * torch.randn_like(spread))
        if self.uses_logits:
            found = functional.binary_cross_entropy_with_logits(scores, pixels, reduction="none")
        else:
            chance = scores.sigmoid()
            found = -(pixels * chance.log() + (1 - pixels) * (1 - chance).log())  # fault
        divergence = 0.5 * (mean.square() + spread.square() - 2 * spread.log() - 1)
        return (found.sum(1) + divergence.sum(1)).mean()


class LargeDivergence(Case):
    """The autoencoder of an active learner, whose divergence is large; its rate is a hundred times too high."""

    # github.com/sinhasam/vaal/issues/10
    kinds = ("learning-rate", "forward-overflow")
    good = 8.0
    cure = settings(lr=1e-2)
    lr = 1.0
    steps = 150

    def build(self) -> None:
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16)
        )
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def data(self) -> tuple[Tensor]:
        random = noise(8402)
        code = torch.randn(640, 3, generator=random)
        return ((code @ torch.randn(3, 64, generator=random)).tanh().view(-1, 1, 8, 8),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        mean, log_variance = self.encoder(batch[0]).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        found = (self.decoder(code) - batch[0].flatten(1)).square().mean(1) * 8
        return (found + 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)).mean()


class WeightsOfTasks(Case):
    """Two tasks are weighted by learned variances; one can be solved exactly, and its variance falls for ever."""

    # github.com/yaringal/multi-task-learning-example/issues/14
    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.3
    least = -1e9
    cure = settings(least=-1.0)
    cured_by = r"clamp|\bbound|floor|penalty|softplus"
    not_cured_by = (settings(lr=0.01),)
    lr = 0.03
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(5, 24), nn.Tanh())
        self.hard, self.easy = nn.Linear(24, 1), nn.Linear(5, 1)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def data(self) -> dict[str, Tensor]:
        random = noise(8403)
        inputs = torch.randn(640, 5, generator=random)
        hard = inputs[:, :1].sin() + 0.3 * torch.randn(640, 1, generator=random)
        return {"inputs": inputs, "hard": hard, "easy": inputs.mean(1, keepdim=True)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hard = functional.mse_loss(self.hard(self.body(batch["inputs"])), batch["hard"])
        easy = functional.mse_loss(self.easy(batch["inputs"]), batch["easy"])
        log_variances = self.log_variances.clamp(min=self.least)
        return (torch.stack([hard, easy]) * (-log_variances).exp() + log_variances).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def score(self) -> float:
        batch = self.clean()
        easy = functional.mse_loss(self.easy(batch["inputs"]), batch["easy"])
        return float(easy + functional.mse_loss(self.hard(self.body(batch["inputs"])), batch["hard"]))


class LikelihoodBelowZero(Case):
    """A normalizing flow of narrow data, whose negative log-likelihood passes zero. Nothing is wrong."""

    # github.com/marco-rudolph/differnet/issues/10
    kinds = ("unknown",)
    healthy = True
    good = -1.0
    lr = 1e-2
    steps = 200

    def build(self) -> None:
        self.scale, self.shift = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 6))

    def data(self) -> tuple[Tensor]:
        random = noise(8404)
        free = 0.1 * torch.randn(640, 3, generator=random)
        return (torch.cat([free, 5 * free.square() + 0.05 * torch.randn(640, 3, generator=random)], 1),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        points = batch[0] * self.scale.exp() + self.shift
        scale, shift = self.net(points[:, :3]).chunk(2, 1)
        rest = points[:, 3:] * scale.tanh().exp() + shift
        square = points[:, :3].square().sum(1) + rest.square().sum(1)
        return (0.5 * square - scale.tanh().sum(1) - self.scale.sum()).mean()
