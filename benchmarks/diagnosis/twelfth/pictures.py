"""Adversaries and detectors, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.case import Case, noise, settings


class CriticWithoutClipping(Case):
    """Adversaries by the distance of Wasserstein, whose critic is trained as it should be but never clipped.

    Report: github.com/torchgan/torchgan/pull/42. Confirmed: the original version needs the clipping of the critic's
    weights, which was missing.
    """

    kinds = ("loss-without-floor",)
    places = ("critic",)
    good = 0.6
    clip = torch.inf
    cure = settings(clip=0.1)
    cured_by = r"\bclip the (?:weights|parameters)|gradient penalty|spectral"
    batch_size = 64
    lr = 2e-3
    steps = 800

    def build(self) -> None:
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def data(self) -> tuple[Tensor]:
        return (torch.randn(2048, 2, generator=noise(12201)) * 0.5 + torch.tensor([2.0, -1.0]),)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        making, judging = self.torch_optimizer(0), self.torch_optimizer(1)
        (real,) = batch
        judging.zero_grad()
        made = self.generator(torch.randn(len(real), 4)).detach()
        self.manual_backward(self.critic(made).mean() - self.critic(real).mean())
        judging.step()
        with torch.no_grad():
            for weight in self.critic.parameters():
                weight.clamp_(-self.clip, self.clip)
        if batch_idx % 5 == 4:
            making.zero_grad()
            self.manual_backward(-self.critic(self.generator(torch.randn(len(real), 4))).mean())
            making.step()

    def score(self) -> float:
        (real,) = self.clean()
        made = self.generator(torch.randn(2048, 4, generator=noise(12202)))
        apart = self.critic(real).mean() - self.critic(made).mean()
        return float(torch.cat([made.mean(0) - real.mean(0), made.std(0) - real.std(0), apart[None]]).abs().max())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.RMSprop(self.generator.parameters(), lr=self.lr),
            torch.optim.RMSprop(self.critic.parameters(), lr=5 * self.lr),
        ]


class ScoresOfCells(Case):
    """Scores of classes and of objects are joined by exponentials that are limited after they are taken.

    Report: github.com/megvii-model/YOLOF/issues/51. Confirmed by the reporter: an exponential overflows before it is
    limited; limited before, NaN no longer occurs. Pixels have their mean subtracted only, as there.
    """

    kinds = ("forward-overflow", "undefined-operation", "unscaled-data")
    places = ("exp", "clamp")
    host = "plain"
    good = 0.4
    limits_first = False
    cure = settings(limits_first=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|limit|logsumexp|softplus|log1p"
    other_cures = settings(**{r"standardi[sz]e|normali[sz]e|rescale|divide": {"unit": 64.0}})
    unit = 1.0
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        for layer in (self.body[0], self.body[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.classes, self.objects = nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12203)
        kind = torch.randint(4, (640, 6, 6), generator=random)
        image = 8 * torch.randn(640, 6, 6, generator=random) + (kind * 70 - 110)
        return image[:, None] / self.unit, torch.nn.functional.one_hot(kind, 4)[..., 1:].movedim(3, 1).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.body(batch[0])
        classes, objects = self.classes(hidden), self.objects(hidden)
        most = 1e8
        if self.limits_first:
            limit = torch.tensor(most).log()
            parts = classes.clamp(max=limit).exp() + objects.clamp(max=limit).exp()
        else:
            parts = classes.exp().clamp(max=most) + objects.exp().clamp(max=most)  # fault
        joined = classes + objects - (1 + parts).log()
        return nn.functional.binary_cross_entropy_with_logits(joined, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PowerOfCertainty(Case):
    """Pixels by a focal loss with an exponent of a half, whose slope is infinite where a probability is exactly one.

    Report: github.com/kornia/kornia/issues/918 and pull/924. Confirmed: the slope of the power is NaN where the
    probability is zero or one and the exponent below one; a small number is added.
    """

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.25
    added = 0.0
    cure = settings(added=1e-6)
    batch_size = 32
    lr = 2e-2
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv1d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 1, 5, padding=2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12204)
        inside = (torch.randn(640, 1, 32, generator=random).cumsum(2) > 0).float()
        return torch.cat([inside * 16 - 8, torch.zeros_like(inside)], 1) + 0.3 * torch.randn(
            640, 2, 32, generator=random
        ), inside

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        chance, inside = self.body(batch[0]).sigmoid(), batch[1]
        there = (1 - chance + self.added).pow(0.5) * inside * (chance + 1e-8).log()  # fault
        absent = (chance + self.added).pow(0.5) * (1 - inside) * (1 - chance + 1e-8).log()  # fault
        return -(0.5 * there + 0.5 * absent).mean()
