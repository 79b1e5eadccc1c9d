"""Registration and classification of images, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class LocalCorrelation(Case):
    """Slices are registered by the correlation in small windows; most windows show nothing but background.

    Report: github.com/DeepRegNet/DeepReg/issues/690 and pull/719. Confirmed and fixed: the variance of a window with
    equal values is a difference that is slightly below zero, by which is divided; it is cut off at zero, and the small
    number below the division is larger.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    host = "plain"
    good = 0.3
    clips_variance = False
    eps = 1e-7
    cure = settings(clips_variance=True, eps=1e-2)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\beps|clamp|variance|small number"
    batch_size = 16
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(2, 16, 5, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 16, 5, padding=2, stride=2),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(16 * 100, 2),
        )
        nn.init.normal_(self.net[-1].weight, std=1e-3)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15102)
        texture = functional.interpolate(torch.randn(256, 1, 5, 5, generator=generator), size=(9, 9), mode="bilinear")
        image = (3 + torch.rand(256, 1, 1, 1, generator=generator)).repeat(1, 1, 20, 20)
        image[:, :, 5:14, 6:15] += texture
        shift = 3 * (2 * torch.rand(256, 2, generator=generator) - 1)
        return {"fixed": image, "moving": self.warp(image, shift), "shift": shift}

    def warp(self, image: Tensor, shift: Tensor) -> Tensor:
        pixels = torch.arange(20.0)
        source = (pixels[:, None] + shift[:, None, :]).clamp(0, 19)
        weights = (1 - (source[:, :, None] - pixels[:, None]).abs()).clamp(min=0)
        return weights[..., 0].unsqueeze(1) @ image @ weights[..., 1].unsqueeze(1).mT

    def lncc(self, target: Tensor, pred: Tensor) -> Tensor:
        def window(x: Tensor) -> Tensor:
            return functional.conv2d(x, torch.ones(1, 1, 5, 5), padding=2)

        count = window(torch.ones_like(target))
        t_sum, p_sum = window(target), window(pred)
        cross = window(target * pred) - t_sum * p_sum / count
        t_var = window(target * target) - t_sum * t_sum / count
        p_var = window(pred * pred) - p_sum * p_sum / count
        if self.clips_variance:
            t_var, p_var = t_var.clamp(min=0), p_var.clamp(min=0)
        return cross * cross / (t_var * p_var + self.eps)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ddf = self.net(torch.cat([batch["fixed"], batch["moving"]], 1) - 3.5)
        image_loss = -self.lncc(batch["fixed"], self.warp(batch["moving"], ddf)).mean()
        return image_loss + 1e-4 * ddf.square().mean()

    def score(self) -> float:
        data = self.clean()
        ddf = self.net(torch.cat([data["fixed"], data["moving"]], 1) - 3.5)
        return float((ddf + data["shift"]).abs().mean() / data["shift"].abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ScaledL2NormPooling(nn.Module):
    """Pools windows by their length.

    Args:
        eps: Small number below the root.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the lengths of the windows, each of two by two."""
        return (4 * functional.avg_pool2d(x.square(), 2) + self.eps).sqrt()


class NormPooling(Case):
    """Digits on black by convolutions of bounded slope and a pooling that takes the length of each window.

    Report: github.com/deel-ai/deel-lip/pull/11 and issues/9. Confirmed and fixed: the slope of the root is unbounded
    for windows of zeros; a small number is added there.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt", "pool")
    good = 0.25
    eps = 0.0
    cure = settings(eps=1e-2)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"small number|epsilon"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.pool = ScaledL2NormPooling(self.eps)
        self.fc = nn.Linear(16 * 9, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(15103)
        digit = torch.randint(4, (512,), generator=generator)
        patterns = torch.rand(4, 6, 6, generator=generator)
        image = torch.zeros(512, 1, 12, 12)
        image[:, 0, 3:9, 3:9] = (patterns[digit] + 0.3 * torch.randn(512, 6, 6, generator=generator)).clamp(0, 1)
        return image, digit

    def group_sort(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).sort(2).values.flatten(1, 2)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = self.pool(self.group_sort(self.conv1(batch[0])))
        x = self.pool(self.group_sort(self.conv2(x)))
        return functional.cross_entropy(self.fc(x.flatten(1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
