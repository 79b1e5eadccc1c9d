"""Volumes and medical images, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def organs(count: int, size: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy slices with a disk of a shade of its own for each organ, and the number of the organ or zero."""
    generator = noise(seed)
    y, x = torch.arange(float(size))[:, None], torch.arange(float(size))
    label = torch.zeros(count, size, size, dtype=torch.long)
    for organ in range(1, classes):
        middle = 2 + (size - 4) * torch.rand(count, 2, 1, 1, generator=generator)
        radius = 1.5 + torch.rand(count, 1, 1, generator=generator)
        label[((y - middle[:, 0]).square() + (x - middle[:, 1]).square()).sqrt() < radius] = organ
    image = label / (classes - 1) + 0.05 * torch.randn(count, size, size, generator=generator)
    return image[:, None], label


class SqueezeBlock(nn.Module):
    """A residual block with squeeze and excitation, with batch normalization or with neither it nor biases."""

    def __init__(self, planes: int, normalizes: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes) if normalizes else nn.Identity()
        self.bn2 = nn.BatchNorm2d(planes) if normalizes else nn.Identity()
        self.conv3, self.conv4 = nn.Conv2d(planes, 8, 1), nn.Conv2d(8, planes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and its scaled change."""
        out = self.bn2(self.conv2(functional.leaky_relu(self.bn1(self.conv1(x)))))
        weight = self.conv4(functional.leaky_relu(self.conv3(out.mean((2, 3), keepdim=True)))).sigmoid()
        return functional.leaky_relu(out * weight + x)


class OrgansAtRisk(Case):
    """Organs at risk by squeeze and excitation blocks, with the Dice loss of all classes: the Dice is zero for all.

    Report: github.com/wentaozhu/AnatomyNet-for-anatomical-segmentation/issues/6. Solved by the author: the batch
    normalization was commented out, and the convolutions have no bias without it.
    """

    kinds = ("depth", "initialization", "learning-rate")
    good = 0.3
    normalizes = False
    cure = settings(normalizes=True)
    cured_by = r"normali[sz]|BatchNorm"
    batch_size = 4
    lr = 5e-3
    steps = 180

    def build(self) -> None:
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(SqueezeBlock(16, self.normalizes) for _ in range(7)))
        self.conv9 = nn.Conv2d(16, 4, 1)

    def data(self) -> dict[str, Tensor]:
        image, label = organs(160, 12, 4, 24201)
        return {"image": image, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.conv9(self.blocks(self.conv1(batch["image"])))
        probability = logits.softmax(1)
        target = functional.one_hot(batch["label"], 4).movedim(-1, 1).float()
        tp = (probability * target).sum((0, 2, 3))
        fp, fn = (probability * (1 - target)).sum((0, 2, 3)), ((1 - probability) * target).sum((0, 2, 3))
        dice = (tp + 1e-4) / (tp + 0.5 * fp + 0.5 * fn + 1e-4)
        return (1 - dice[1:]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class CoreOfTheTumor(Case):
    """The core of a brain tumor by a U-Net: after some epochs the Dice loss is one all the time.

    Report: github.com/zsdonghao/u-net-brain-tumor/issues/2. Solved by a reader: a rate that is lower by ten.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.4
    lr = 0.3
    cure = settings(lr=0.03)
    batch_size = 8
    steps = 200

    def build(self) -> None:
        self.conv1, self.conv2 = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.conv3, self.deconv1 = nn.Conv2d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.out = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1), nn.Sigmoid())

    def data(self) -> dict[str, Tensor]:
        image, label = organs(240, 16, 3, 24202)
        flair = image + 0.1 * torch.randn(image.shape, generator=noise(24203))
        return {"image": torch.cat([image, flair], 1), "mask": (label == 2)[:, None].float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        conv1 = self.conv1(batch["image"]).relu()
        up = self.deconv1(self.conv3(self.conv2(conv1).relu()).relu()).relu()
        out, mask = self.out(torch.cat([conv1, up], 1)), batch["mask"]
        inse, total = (out * mask).sum((1, 2, 3)), (out * out).sum((1, 2, 3)) + (mask * mask).sum((1, 2, 3))
        return 1 - ((2 * inse + 1e-5) / (total + 1e-5)).mean()


class FluidInThreeDimensions(Case):
    """Velocities of a fluid by an autoencoder and steps of its code, in three dimensions: the loss grows to NaN.

    Report: github.com/wiewel/LatentSpaceSubdivision/issues/3. Found by the reporter: the rate is too large. In two
    dimensions all goes well.
    """

    kinds = ("learning-rate",)
    good = 0.3
    lr = 0.3
    cure = settings(lr=0.03)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        self.encoder = nn.Sequential(
            nn.Conv3d(3, 16, 3, stride=2, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(16 * 27, 16)
        )
        self.pred = nn.Sequential(nn.Linear(16, 64), nn.ELU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ELU(), nn.Linear(64, 3 * 125))

    def data(self) -> dict[str, Tensor]:
        generator = noise(24204)
        grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 5)] * 3, indexing="ij"))
        wave = torch.randn(480, 3, 3, generator=generator)
        phase = torch.einsum("nij,jxyz->nixyz", wave, grid)
        return {"velocity": 2 * phase.sin(), "next_velocity": 2 * (phase + 0.3).sin()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        code = self.encoder(batch["velocity"])
        following = code + self.pred(code)
        now, after = (self.decoder(one).unflatten(1, (3, 5, 5, 5)) for one in (code, following))
        supervised = functional.mse_loss(following, self.encoder(batch["next_velocity"]))
        return (
            functional.mse_loss(now, batch["velocity"])
            + functional.mse_loss(after, batch["next_velocity"])
            + supervised
        )

    def score(self) -> float:
        """The error of the next velocities, relative to their squares."""
        batch = self.data()
        code = self.encoder(batch["velocity"])
        after = self.decoder(code + self.pred(code)).unflatten(1, (3, 5, 5, 5))
        return float((after - batch["next_velocity"]).square().mean() / batch["next_velocity"].square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
