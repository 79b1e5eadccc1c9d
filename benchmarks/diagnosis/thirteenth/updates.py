"""Schedules, optimizers and accumulation that users wrote, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.diagnosis.case import Case, noise, settings


class SumOfParts(Case):
    """Words from speech, whose gradients are gathered over eight batches with the whole loss of each.

    Report: github.com/hirofumi0810/neural_sp/issues/168. Confirmed: the loss is to be divided by the number of batches
    that are gathered.
    """

    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.6
    divides = False
    cure = settings(divides=True)
    cured_by = r"divide|average|mean"
    lr = 0.6
    batch_size = 16
    steps = 480

    def build(self) -> None:
        self.first, self.mix, self.head = nn.Linear(8, 32), nn.RNN(32, 32, batch_first=True), nn.Linear(32, 6)
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13501)
        label = torch.randint(6, (1024, 12), generator=random)
        sound = torch.randn(6, 8, generator=random)[label] + torch.randn(6, 8, generator=random)[label.roll(1, 1)]
        return sound + 0.2 * torch.randn(1024, 12, 8, generator=random), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.mix(self.first(batch[0]).relu())[0]).mT, batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        if self.divides:
            loss = loss / 8
        watch.loss(loss)
        backward(loss)
        self.taken += 1
        if self.taken % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class WarmUpInSteps(Case):
    """A denoiser with an exponential warm-up, whose constant was meant per epoch while it is taken at each step.

    Report: github.com/crowsonkb/k-diffusion/issues/50. Confirmed: the rate rises so fast that there is no warm-up; the
    scheduler counts steps, and the warm-up has to be much slower.
    """

    kinds = ("learning-rate",)
    good = 0.2
    warm_up = 0.8
    cure = settings(warm_up=0.997)
    cured_by = r"warm"
    batch_size = 64
    lr = 0.3
    steps = 300

    def build(self) -> None:
        self.first, self.last = nn.Linear(9, 32), nn.Linear(32, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(8)
        )

    def data(self) -> tuple[Tensor]:
        random = noise(13502)
        return (torch.randn(4, 8, generator=random)[torch.randint(4, (2048,), generator=random)],)

    def wrong(self, sample: Tensor, log_sigma: Tensor, added: Tensor) -> Tensor:
        sigma = log_sigma.exp()
        scaled = (sample + sigma * added) / (1 + sigma.square()).sqrt()
        hidden = self.first(torch.cat([scaled, log_sigma / 4], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return functional.mse_loss(self.last(hidden), sample)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        return self.wrong(batch[0], 1.2 * torch.randn(len(batch[0]), 1) - 1.2, torch.randn_like(batch[0]))

    def score(self) -> float:
        (sample,), random = self.clean(), noise(13503)
        log_sigma = 1.2 * torch.randn(2048, 1, generator=random) - 1.2
        return float(self.wrong(sample, log_sigma, torch.randn(2048, 8, generator=random)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        rise = LambdaLR(optimizer, lambda step: 1 - self.warm_up ** (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}


class BackboneJoins(Case):
    """A pretrained network of images, of which at first only the head is trained, then all at the rate of the head.

    Report: github.com/Welthungerhilfe/cgm-ml/issues/326. Found by the reporters: the loss jumps up when the layers of
    the base network become trainable, since the rate is too high for these.
    """

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.5
    factor = 1.0
    cure = settings(factor=0.02)
    cured_by = r"unfr|group|backbone"
    batch_size = 32
    lr = 0.3
    steps = 400

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv1d(2, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 48, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        for layer in (self.backbone[0], self.backbone[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(48 * 14, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        image = torch.randn(768, 2, 32, generator=noise(13504))
        return image, (image[:, :1, 1:] * image[:, 1:, :-1]).sum(2) / 4

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.backbone(batch[0]) / 26), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 200 and not self.backbone[0].weight.requires_grad:
            self.backbone.requires_grad_(True)
            optimizer = self.trainer.optimizers[0]
            rate = self.factor * optimizer.param_groups[0]["lr"]
            optimizer.add_param_group({"params": [*self.backbone.parameters()], "lr": rate})  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=self.lr, momentum=0.9)


class UnusedRowsInHalf(Case):
    """A model of tokens whose weights are float16, with an optimizer whose small number is zero there.

    Report: github.com/google-deepmind/optax/issues/1754 and pull/1755. Confirmed: the small number of Adam is below the
    least float16 number; weights without a gradient, such as embeddings of tokens that do not occur, become NaN.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "plain"
    good = 0.6
    eps = 1e-8
    cure = settings(eps=1e-4)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps\b|float32"
    lr = 4e-3
    steps = 200

    def build(self) -> None:
        self.tokens = nn.Embedding(400, 24).half()
        self.net = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 5)).half()

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13505)
        tokens = (400 * torch.rand(1024, 4, generator=random).square()).long()
        return tokens, (tokens[:, 0] + tokens[:, 1]) % 5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.tokens(batch[0]).flatten(1)
        return functional.cross_entropy(self.net(hidden).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)
