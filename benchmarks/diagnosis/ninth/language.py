"""Half precision, language models and schedules, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class ScaleOfItsOwn(Case):
    """A consistency model in float16 whose loss is multiplied by a fixed scale, while the weight of the loss rises."""

    # github.com/locuslab/ect/pull/13
    kinds = ("half-precision",)
    host = "plain"
    good = 0.5
    in_half = True
    cure = settings(in_half=False)
    cured_by = r"float32|bfloat16|GradScaler"
    lr = 2e-3
    steps = 160

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 6))
        self.count = 0

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9101)
        points = torch.randn(640, 2, generator=random) @ torch.randn(2, 6, generator=random)
        return points.tanh(), 0.05 + torch.rand(640, 1, generator=random)

    def denoised(self, points: Tensor, level: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            return self.net(torch.cat([points, level], 1)).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, level = batch
        nearer = level * (1 - 0.5 ** (1 + min(self.count, 160) // 16))
        added = torch.randn_like(points)
        with torch.no_grad():
            target = points + 0.05 * self.denoised(points + nearer * added, nearer)
        found = self.denoised(points + level * added, level)
        return ((found - target).square().mean(1) / (level - nearer).squeeze(1)).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = 65536 * model.loss(batch)
        watch.loss(loss)
        backward(loss)
        for parameter in model.parameters():
            parameter.grad /= 65536
        optimizer.step()
        self.count += 1

    def score(self) -> float:
        points, level = self.clean()
        made = self.denoised(points + level * torch.randn(points.shape, generator=noise(9102)), level)
        return float((made - points).square().mean())


class GptOnASmallCard(Case):
    """A language model whose rate was that of a larger batch: its loss leaves the rails, and a lower one cures it."""

    # github.com/karpathy/nanoGPT/issues/136
    kinds = ("learning-rate",)
    good = 1.0
    cure = settings(lr=5e-3)
    lr = 1.0
    batch_size = 16
    steps = 100

    def build(self) -> None:
        self.words, self.positions = nn.Embedding(20, 32), nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(32)
        self.head = nn.Linear(32, 20, bias=False)

    def data(self) -> tuple[Tensor]:
        random = noise(9103)
        start, step = torch.randint(0, 20, (320, 1), generator=random), torch.randint(1, 4, (320, 1), generator=random)
        return ((start + step * torch.arange(17)) % 20,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden = self.words(batch[0][:, :-1]) + self.positions(torch.arange(16))
        later = torch.full((16, 16), float("-inf")).triu(1)
        scores = self.head(self.norm(self.layers(hidden, mask=later)))
        return functional.cross_entropy(scores[:, 1:].flatten(0, 1), batch[0][:, 2:].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.1)


class ResumedAtTheFirstRate(Case):
    """A transfer of style is resumed with a fresh optimizer at the rate with which it had begun."""

    # github.com/jcjohnson/fast-neural-style/issues/24
    kinds = ("learning-rate-jump", "optimizer-state")
    host = "plain"
    good = 0.2
    later = 0.1
    cure = settings(later=3e-4)
    cured_by = "schedule|resum|restor|state"
    # The loop sets the rate itself, so that a cap from outside has no effect.
    other_cures = settings(**{"learning rate near": settings(later=3e-4)})
    lr = 0.02
    steps = 240

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 12, 3, padding=1))
        self.last, self.count = nn.Conv2d(12, 1, 3, padding=1), 0
        self.extractor = nn.Conv2d(1, 8, 3)
        self.extractor.requires_grad_(False)

    def data(self) -> tuple[Tensor]:
        return (torch.randn(320, 1, 10, 10, generator=noise(9104)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (picture,) = batch
        wanted = picture.roll(1, 2) - 0.5 * picture
        made = self.last(self.net(picture).tanh())
        content = functional.mse_loss(made, wanted)
        return content + 0.5 * functional.mse_loss(self.extractor(made), self.extractor(wanted))

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if self.count == 150:
            optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = self.later if self.count >= 150 else self.lr * 0.97**self.count
        self.count += 1
        super().optimize(model, batch, optimizers, watch, backward)


class DistilledInPieces(Case):
    """Distillation in thirty-two micro-batches, whose losses are added and not divided by their number."""

    # github.com/agokrani/distillKitPlus/issues/5
    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.25
    divides = False
    cure = settings(divides=True)
    cured_by = "divide"
    batch_size = 128
    lr = 0.5
    steps = 60

    def build(self) -> None:
        self.teacher = nn.Sequential(nn.Embedding(30, 24), nn.Flatten(), nn.Linear(96, 12))
        self.student = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 12))
        self.teacher.requires_grad_(False)

    def data(self) -> tuple[Tensor]:
        return (torch.randint(0, 30, (1280, 4), generator=noise(9105)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        wanted = (2 * self.teacher(batch[0])).softmax(-1)
        return functional.kl_div(self.student(batch[0]).log_softmax(-1), wanted, reduction="batchmean")

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        optimizers[0].zero_grad()
        for words in batch[0].chunk(32):
            loss = model.loss((words,)) / (32 if self.divides else 1)
            watch.loss(loss)
            backward(loss)
        optimizers[0].step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=self.lr, momentum=0.9)


class GarbageNowAndThen(Case):
    """A language model whose loss leaps at batches of garbage, and falls back by itself. Nothing is lost."""

    # github.com/stanford-crfm/mistral/issues/115
    kinds = ("unknown",)
    healthy = True
    good = 0.6
    lr = 2e-2
    steps = 200
    shuffle = False

    def build(self) -> None:
        self.words, self.mix, self.last = nn.Embedding(16, 24), nn.Linear(48, 64), nn.Linear(64, 16)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9106)
        words = torch.randint(0, 16, (2560, 2), generator=random)
        following = (words.sum(1) + 3) % 16
        following[1600:1632] = torch.randint(0, 16, (32,), generator=random)
        following[2080:2112] = torch.randint(0, 16, (32,), generator=random)
        return words, following

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.last(self.mix(self.words(batch[0]).flatten(1)).relu()), batch[1])
