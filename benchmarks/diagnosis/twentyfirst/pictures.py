"""Masks, faces and noise in pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentieth.detection import squares


class MasksOfTwentyOne(Case):
    """Two classes of pixels by one output with a binary loss, and the transformations of masks of twenty-one classes.

    Report: github.com/bodokaiser/piwise/issues/9. Solved by the reporter: the loss is negative and falls, since the
    masks are no longer between zero and one; with other transformations of the masks the loss is positive and falls.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("labels", "masks", "target", "binary_cross_entropy_with_logits")
    host = "plain"
    good = 0.4
    relabels = True
    cure = settings(relabels=False)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 16
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.unet = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
        )

    def data(self) -> dict[str, Tensor]:
        image = squares(480, 21206)[0]
        mask = (image > 0.5).float()
        noisy = 0.5 * image + 0.35 * torch.randn(image.shape, generator=noise(21207))
        return {"images": noisy, "labels": 21 * mask if self.relabels else mask}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.unet(batch["images"])
        return functional.binary_cross_entropy_with_logits(outputs, batch["labels"])

    def score(self) -> float:
        """The loss with masks of zero and one."""
        batch = self.clean()
        return float(functional.binary_cross_entropy_with_logits(self.unet(batch["images"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class FacesInHalf(Case):
    """Expressions of faces by a network of convolutions that is turned to half precision as a whole, with Adam.

    Report: github.com/pytorch/pytorch/issues/8860. Solved by the reporter and confirmed by a reader: the epsilon of
    Adam is zero in half precision, and 1e-4 makes the loss finite.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "plain"
    good = 0.6
    eps = 1e-8
    cure = settings(eps=1e-4)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 32
    lr = 1e-3
    steps = 300

    def build(self) -> None:
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()
        )
        self.fc1, self.fc2 = nn.Linear(576, 32), nn.Linear(32, 4)
        self.half()

    def data(self) -> dict[str, Tensor]:
        generator = noise(21208)
        faces = (torch.rand(4, 12, 12, generator=generator) > 0.5).half()
        labels = torch.randint(4, (640,), generator=generator)
        images = faces[labels] + 0.5 * torch.randn(640, 12, 12, generator=generator).half()
        return {"images": images[:, None], "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.convolutions(batch["images"]).flatten(1)
        return functional.cross_entropy(self.fc2(self.fc1(x).relu()).float(), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)


class NoSignalAtTheEnd(Case):
    """Noise in pictures, weighted by the ratio of signal to noise, with a schedule that ends without any signal.

    Report: github.com/TiankaiHang/Min-SNR-Diffusion-Training/pull/4 and issues/2. Found by the author of the change:
    the ratio is zero at the last step, by which the weight is divided, and the loss is NaN; the weight is one there.
    """

    kinds = ("undefined-operation",)
    places = ("div", "mse_loss_weight", "mul")
    host = "plain"
    good = 0.35
    sets_to_one = False
    cure = settings(sets_to_one=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bwhere\b|clamp|\beps|small (?:value|number)|\bone\b"
    batch_size = 64
    lr = 2e-3
    steps = 500

    def build(self) -> None:
        self.model = nn.Sequential(nn.Linear(37, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 36))
        alphas_bar_sqrt = torch.linspace(0.995, 0.0, 50)
        self.register_buffer("alphas_cumprod", alphas_bar_sqrt.square())

    def data(self) -> dict[str, Tensor]:
        generator = noise(21209)
        shapes = 2 * (torch.rand(3, 36, generator=generator) > 0.5).float() - 1
        kind = torch.randint(3, (1280,), generator=generator)
        return {"x_start": shapes[kind] + 0.05 * torch.randn(1280, 36, generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_start = batch["x_start"]
        t = torch.randint(50, (len(x_start), 1))
        alpha, sigma = self.alphas_cumprod[t].sqrt(), (1 - self.alphas_cumprod[t]).sqrt()
        noisy = torch.randn_like(x_start)
        predicted = self.model(torch.cat([alpha * x_start + sigma * noisy, t / 25 - 1], 1))
        snr = (alpha / sigma).square()
        mse_loss_weight = snr.clamp(max=5.0) / snr  # fault
        if self.sets_to_one:
            mse_loss_weight = torch.where(snr == 0, 1.0, mse_loss_weight)
        return (mse_loss_weight * (noisy - predicted).square().mean(1, keepdim=True)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
