"""Pixels, characters and generated pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PixelsAreSummed(Case):
    """Classes of pixels, one picture a step, with a loss that is summed over pixels and the rate for a mean.

    Report: github.com/wkentaro/pytorch-fcn/issues/17. Confirmed by the author: the loss is NaN at the rate of the
    paper, which belongs to a normalized loss, and is not at the small rate of the script; the two go together.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.3
    lr = 1e-4
    cure = settings(lr=1e-6)
    batch_size = 1
    steps = 800

    def build(self) -> None:
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.score_fr, self.upscore = nn.Conv2d(32, 3, 1), nn.ConvTranspose2d(3, 3, 2, stride=2)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(20201)
        level = torch.rand(320, 2, 1, 1, generator=generator)
        rows = torch.arange(24)
        first = (rows[:, None] < 24 * level[:, :1]).expand(320, 1, 24, 24)
        second = (rows > 24 * level[:, 1:]).expand(320, 1, 24, 24)
        target = torch.where(first, 0, torch.where(second, 1, 2))[:, 0]
        image = target[:, None] - 1 + 0.3 * torch.randn(320, 1, 24, 24, generator=generator)
        return image, target

    def logits(self, data: Tensor) -> Tensor:
        return self.upscore(self.score_fr(self.conv2(self.conv1(data))))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        data, target = batch
        return functional.cross_entropy(self.logits(data), target, reduction="sum")

    def score(self) -> float:
        """The mean over pixels."""
        data, target = self.data()
        return float(functional.cross_entropy(self.logits(data), target))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.99, weight_decay=5e-4)


class LongerThanTheOutput(Case):
    """Characters in a strip of a picture by a convolution and a recurrent network, for a picture of another width.

    Report: github.com/ypwhs/captcha_break/issues/29. Confirmed by the author: the text is too long for the length of
    the output, since the width of the picture was changed; it needs less pooling along the width.
    """

    kinds = ("target-out-of-range",)
    places = ("ctc_loss", "ctc", "ctcloss", "target")
    host = "plain"
    good = 0.4
    pooling = 4
    cure = settings(pooling=2)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"pool|longer|input_length|time steps|zero_infinity|shorten"
    batch_size = 16
    lr = 3e-3
    steps = 500

    def build(self) -> None:
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d((4, 1))
        )
        self.pool = nn.MaxPool2d((1, self.pooling))
        self.lstm = nn.LSTM(64, 32, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(64, 6)

    def data(self) -> dict[str, Tensor]:
        generator = noise(20202)
        glyphs = (torch.rand(6, 8, 6, generator=generator) > 0.5).float()
        target = torch.randint(1, 6, (640, 4), generator=generator)
        image = glyphs[target].permute(0, 2, 1, 3).reshape(640, 8, 24)
        return {"image": image[:, None] + 0.1 * torch.rand(640, 1, 8, 24, generator=generator), "target": target}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.pool(self.cnn(batch["image"])).flatten(1, 2).transpose(1, 2)
        output_log_softmax = self.fc(self.lstm(x)[0]).transpose(0, 1).log_softmax(2)
        steps, count = output_log_softmax.shape[:2]
        return functional.ctc_loss(  # fault
            output_log_softmax, batch["target"], torch.full((count,), steps), torch.full((count,), 4)
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class GeneratorGoesTheOtherWay(Case):
    """Small pictures by a generator and a critic whose weights are clipped after each of its steps.

    Report: github.com/Zeleni9/pytorch-wgan/issues/51 and pull/53. Confirmed and fixed by the author: the generator has
    to maximize what the critic says of its pictures, and the backward pass had the wrong sign.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.25
    sign = 1.0
    cure = settings(sign=-1.0)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bsign\b|maximi[sz]e|minus|negat"
    batch_size = 32
    lr = 1e-3
    steps = 500

    def build(self) -> None:
        self.G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 36), nn.Tanh())
        self.D = nn.Sequential(
            nn.Linear(36, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(20203)
        shapes = 1.4 * (torch.rand(3, 36, generator=noise(7)) > 0.5).float() - 0.7
        kind = torch.randint(3, (960,), generator=generator)
        return {"images": shapes[kind] + 0.1 * torch.randn(960, 36, generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        fake = self.G(torch.randn(len(batch["images"]), 8))
        return self.sign * self.D(fake).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        g_optimizer, d_optimizer = optimizers
        for _ in range(3):
            with torch.no_grad():
                fake = self.G(torch.randn(len(batch["images"]), 8))
            d_optimizer.zero_grad()
            d_loss = self.D(fake).mean() - self.D(batch["images"]).mean()
            watch.loss(d_loss)
            backward(d_loss)
            d_optimizer.step()
            with torch.no_grad():
                for parameter in self.D.parameters():
                    parameter.clamp_(-0.05, 0.05)
        g_optimizer.zero_grad()
        g_loss = model.loss(batch)
        watch.loss(g_loss)
        backward(g_loss)
        g_optimizer.step()

    def score(self) -> float:
        """The squared distance of a generated picture from the nearest real shape."""
        shapes = 1.4 * (torch.rand(3, 36, generator=noise(7)) > 0.5).float() - 0.7
        fake = self.G(torch.randn(256, 8, generator=noise(8)))
        return float((fake[:, None] - shapes).square().mean(2).amin(1).mean())

    def configure_optimizers(self) -> Any:
        return [torch.optim.RMSprop(part.parameters(), lr=self.lr) for part in (self.G, self.D)]
