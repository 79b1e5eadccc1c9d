"""Depth and rotation from pictures and points, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def scenes(count: int, seed: int, least: float, most: float) -> tuple[Tensor, Tensor]:
    """Return pictures of slopes, and their depths between two numbers."""
    generator = noise(seed)
    rows = torch.arange(12)
    slope = 2 * torch.rand(count, 2, 1, 1, generator=generator) - 1
    level = (slope[:, :1] * (rows[:, None] - 5.5) + slope[:, 1:] * (rows - 5.5)) / 11
    depth = least + (most - least) * (level + 1) / 2
    image = torch.cat([level, level.square()], 1) + 0.02 * torch.randn(count, 2, 12, 12, generator=generator)
    return image, depth


class InverseOfMissingDepth(Case):
    """Depths of indoor scenes, which the dataset turns into their inverse; on own pictures some are missing.

    Report: github.com/ialhashim/DenseDepth/issues/65. Confirmed by the author and the reporter: missing depths are
    zero, by which the largest depth is divided; where they are filled the loss is finite.
    """

    kinds = ("nonfinite-target",)
    places = ("depth",)
    good = 0.25
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bfill|remove|\bdrop\b|mask|clamp"
    batch_size = 16
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 1, 3, padding=1)
        )

    def data(self) -> dict[str, Tensor]:
        image, depth = scenes(480, 17101, 2.0, 10.0)
        hole = torch.rand(480, 1, 12, 12, generator=noise(17102)) < 0.01
        depth = torch.where(hole, torch.full_like(depth, 10.0) if self.fills else 0.0, depth)
        return {"image": image, "depth": 10.0 / depth}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        pred, depth = self.decoder(self.encoder(batch["image"])), batch["depth"]
        edges_x = (pred.diff(dim=3) - depth.diff(dim=3)).abs().mean()
        edges_y = (pred.diff(dim=2) - depth.diff(dim=2)).abs().mean()
        return 0.1 * (edges_x + edges_y) + functional.l1_loss(pred, depth)


class DepthOfZero(Case):
    """Depths by a loss that does not depend on scale, on own maps, of which few hold zeros.

    Report: github.com/shariqfarooq123/AdaBins/issues/16. Confirmed by a reader: zeros in the depths give NaN in the
    loss, which takes logarithms; with a least depth it falls.
    """

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "depth")
    host = "plain"
    good = 1.2
    least = 0.0
    cure = settings(least=1e-3)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"small (?:value|number)|\beps|clamp|mask|\bleast\b|positive"
    batch_size = 8
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
        self.bins = nn.Linear(24, 16)
        self.conv_out = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 16, 1))

    def data(self) -> dict[str, Tensor]:
        image, depth = scenes(480, 17103, 1.0, 8.0)
        few = torch.randperm(480, generator=noise(17104))[:4]
        depth[few, :, 0, :2] = 0.0
        return {"image": image, "depth": depth}

    def predict(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        widths = self.bins(features.mean((2, 3))).softmax(1) * 10
        centers = widths.cumsum(1) - widths / 2
        return (self.conv_out(features).softmax(1) * centers[:, :, None, None]).sum(1, keepdim=True)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        pred, depth = self.predict(batch["image"]), batch["depth"]
        if self.least:
            keep = depth > self.least
            pred, depth = pred[keep], depth[keep]
        g = pred.log() - depth.log()  # fault
        return 10 * (g.var() + 0.15 * g.mean().square()).sqrt()

    def score(self) -> float:
        return float(10 * functional.l1_loss(self.predict(self.clean()["image"]).log(), self.least_depth().log()))

    def least_depth(self) -> Tensor:
        return scenes(480, 17103, 1.0, 8.0)[1]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class AngleBetweenRotations(Case):
    """Rotations from their matrices by two learned columns, as a check, judged by the angle to the true ones.

    Report: github.com/papagina/RotationContinuity/issues/11. Found by the reporter: the loss is NaN with the cosine
    kept between -1 and 1; with bounds a little inside of them the training runs.
    """

    kinds = ("undefined-operation",)
    places = ("acos",)
    good = 0.25
    bound = 1.0
    cure = settings(bound=0.9999)
    cured_by = r"clamp|inside|atan2|small (?:value|number)|\beps"
    batch_size = 128
    lr = 1e-4
    steps = 900

    def build(self) -> None:
        self.feature = nn.Sequential(nn.Linear(9, 128), nn.LeakyReLU(), nn.Linear(128, 128), nn.LeakyReLU())
        self.out = nn.Linear(128, 6)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17105)
        return {"rotation": self.matrix(torch.randn(4096, 6, generator=generator))}

    def matrix(self, columns: Tensor) -> Tensor:
        x = functional.normalize(columns[:, :3], dim=1)
        z = functional.normalize(torch.linalg.cross(x, columns[:, 3:]), dim=1)
        return torch.stack([x, torch.linalg.cross(z, x), z], 2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = self.matrix(self.out(self.feature(batch["rotation"].flatten(1))))
        trace = (predicted.mT @ batch["rotation"]).diagonal(dim1=1, dim2=2).sum(1)
        cosine = ((trace - 1) / 2).clamp(-self.bound, self.bound)
        return torch.acos(cosine).mean()  # fault


class NegativeUncertainty(Case):
    """Depths with their uncertainty, which is a further channel of the decoder, next to one that ends in a sigmoid.

    Report: github.com/mattpoggi/mono-uncertainty/issues/13. Found by the reporter: the channel has no bound and its
    values are below zero, of which the loss takes the logarithm.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = -0.3
    bounds = False
    cure = settings(bounds=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"softplus|positive|clamp|sigmoid|exp|small (?:value|number)|\beps"
    batch_size = 12
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.decoder = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1), nn.ELU(), nn.Conv2d(24, 24, 3, padding=1), nn.ELU()
        )
        self.dispconv, self.uncertconv = nn.Conv2d(24, 1, 3, padding=1), nn.Conv2d(24, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        image, disp = scenes(480, 17106, 0.1, 0.9)
        spread = 0.02 + 0.2 * image[:, 1:].clamp(0, 1)
        return {"color": image, "disp": disp + spread * torch.randn(disp.shape, generator=noise(17107))}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.decoder(batch["color"])
        disp, uncert = self.dispconv(features).sigmoid(), self.uncertconv(features)
        if self.bounds:
            uncert = uncert.sigmoid() + 1e-3
        return ((disp - batch["disp"]).abs() / uncert + uncert.log()).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
