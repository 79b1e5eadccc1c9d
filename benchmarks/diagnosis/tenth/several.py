"""Text in scenes, sounds, clusters and rare classes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NoPolygons(Case):
    """Points, outlines and letters of words by three heads; in some batches no word has an outline to learn."""

    # github.com/AlibabaResearch/AdvancedLiterateMachinery/issues/161
    kinds = ("empty-reduction", "undefined-operation")
    good = 1.2
    has_outlines = False
    cure = settings(has_outlines=True)
    cured_by = "skip|ignore|clamp|count"
    batch_size = 8
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(12, 48), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(48, 4) for _ in range(3))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9301)
        rows = torch.randn(640, 12, generator=random)
        labels = rows.view(640, 3, 4).argmax(2)
        without = torch.rand(640, generator=random) < 0.6
        if not self.has_outlines:
            labels[without, 1] = -1
        return rows, labels

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        rows, labels = batch
        hidden = self.body(rows)
        losses = []
        for head, label in zip(self.heads, labels.unbind(1), strict=True):
            there = (label >= 0).float()
            each = functional.cross_entropy(head(hidden), label.clamp(min=0), reduction="none")
            losses.append((each * there).sum() / there.sum())
        return torch.stack(losses).sum()


class WaveDenoiser(Case):
    """Noise in waveforms is predicted from them and its level; the rate falls by a twentieth, from too high a start."""

    # github.com/ivanvovk/WaveGrad/issues/3
    kinds = ("learning-rate",)
    good = 0.75
    cure = settings(lr=2e-3)
    lr = 0.5
    steps = 200

    def build(self) -> None:
        self.level = nn.Linear(1, 24)
        self.layers = nn.ModuleList(nn.Conv1d(24, 24, 3, padding=2**one, dilation=2**one) for one in range(4))
        self.first, self.last = nn.Conv1d(1, 24, 5, padding=2), nn.Conv1d(24, 1, 1)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(9302)
        turns = torch.rand(512, 1, 1, generator=random) * 0.5 + 0.1
        wave = (torch.arange(32) * turns).sin()
        return wave, torch.randn(512, 1, 32, generator=random), torch.rand(512, 1, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        wave, added, level = batch
        mixed = level[..., None] * wave + (1 - level[..., None].square()).sqrt() * added
        hidden = self.first(mixed)
        for layer in self.layers:
            hidden = hidden + layer(functional.leaky_relu(hidden + self.level(level)[..., None], 0.2))
        return functional.l1_loss(self.last(hidden), added)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)}


class ShrunkClusters(Case):
    """Clusters are pulled together and their centres apart on a sphere: the loss falls below zero. It is right."""

    # github.com/yueliu1999/Dink-Net/issues/6
    kinds = ("unknown",)
    healthy = True
    host = "plain"
    good = -0.5
    lr = 1e-2
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))
        self.centres = nn.Parameter(torch.randn(4, 8, generator=noise(9303)))

    def data(self) -> tuple[Tensor]:
        random = noise(9304)
        middles = 3 * torch.randn(4, 10, generator=random)
        return (middles[torch.randint(4, (512,), generator=random)] + torch.randn(512, 10, generator=random) / 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        codes, centres = functional.normalize(self.net(batch[0]), dim=1), functional.normalize(self.centres, dim=1)
        apart = (centres[:, None] - centres).square().sum(2)
        near = (codes[:, None] - centres).square().sum(2)
        return near.min(1).values.mean() - apart.sum() / 12


class AbsentClasses(Case):
    """A contrast with proxies in which each class counts the same; a class that a batch lacks is divided by nought."""

    # github.com/zylbuaa/ECL/issues/4
    kinds = ("empty-reduction", "undefined-operation")
    host = "plain"
    good = 1.0
    fewest = 0.0
    cure = settings(fewest=1.0)
    cured_by = "clamp|maximum|epsilon|count|skip"
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))
        self.proxies = nn.Parameter(torch.randn(5, 8, generator=noise(9305)))
        self.head = nn.Linear(8, 5)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9306)
        often = torch.tensor([0.4, 0.25, 0.15, 0.12, 0.08])
        label = torch.multinomial(often, 512, True, generator=random)
        middles = 2 * torch.randn(5, 10, generator=random)
        return middles[label] + torch.randn(512, 10, generator=random), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        rows, label = batch
        codes = self.net(rows)
        near = functional.normalize(codes, dim=1) @ functional.normalize(self.proxies, dim=1).T / 0.2
        own = functional.one_hot(label, 5).float()
        each = -(near.log_softmax(1) * own).sum(0) / own.sum(0).clamp(min=self.fewest)
        return functional.cross_entropy(self.head(codes), label) + each.mean()
