"""Detectors, depth and faces."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RateOfEightDevices(Case):
    """A detector that is trained on one device, two pictures at a time, at the rate that is meant for eight devices."""

    # github.com/facebookresearch/maskrcnn-benchmark/issues/295
    host = "plain"
    kinds = ("learning-rate",)
    good = 1.0
    lr = 0.16
    cure = settings(lr=0.01)
    steps = 250
    batch_size = 2

    def build(self) -> None:
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.named, self.box = nn.Linear(128, 4), nn.Linear(128, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(921)
        pictures = torch.randn(400, 3, 8, 8, generator=random)
        middle = functional.avg_pool2d(pictures, 4)
        return {"image": pictures, "label": middle[:, 0].flatten(1).argmax(1), "box": 3 * middle[:, 1].flatten(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.trunk(batch["image"])
        named = functional.cross_entropy(self.named(found), batch["label"])
        return named + functional.smooth_l1_loss(self.box(found), batch["box"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


class BoxesOfSixteenBits(Case):
    """Corners less one in unsigned numbers: one of nought becomes 65535, and the box has a negative width."""

    # github.com/jwyang/faster-rcnn.pytorch/issues/79, github.com/endernewton/tf-faster-rcnn/issues/107
    kinds = ("undefined-operation", "outlier-batch", "target-out-of-range")
    places = ("log", "gt_boxes")
    rows = (20, 148)
    good = 0.6
    wraps = True
    cure = settings(wraps=False)
    cured_by = r"remove|\bdrop\b|filter|exclude"
    shuffle = False
    lr = 5e-3
    steps = 100

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(12, 48), nn.ReLU())
        self.deltas = nn.Linear(48, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(922)
        roi = torch.randn(480, 12, generator=random)
        corner = (8 + 2 * roi[:, :2]).clamp(1, 14).round()
        size = (8 * roi[:, 2:4].mul(0.4).exp()).round().clamp(min=1)
        boxes = torch.cat([corner, corner + size], 1)
        if self.wraps:
            boxes[148, 0] = 65535.0
        return {"roi": roi, "gt_boxes": boxes}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        boxes = batch["gt_boxes"]
        size = boxes[:, 2:] - boxes[:, :2]
        middle = boxes[:, :2] + size / 2
        goal = torch.cat([(middle - 12) / 8, torch.log(size / 8)], 1)  # fault
        return functional.smooth_l1_loss(self.deltas(self.trunk(batch["roi"])), goal)


class InverseOfNoDepth(Case):
    """The dataset gives the largest depth divided by each depth; some are nought where the camera saw nothing."""

    # github.com/ialhashim/DenseDepth/issues/65, github.com/ialhashim/DenseDepth/issues/114
    kinds = ("nonfinite-target",)
    places = ("depth",)
    rows = (12, 76)
    good = 0.8
    least = 0.0
    cure = settings(least=2.0)
    cured_by = "depth of 0|zero"
    shuffle = False
    lr = 5e-3
    steps = 100
    batch_size = 16

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(24, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        pictures = torch.randn(160, 3, 10, 10, generator=noise(923))
        depth = 10 / (2 + functional.avg_pool2d(pictures, 3, 1, 1).mean(1, keepdim=True))
        depth[76, :, 2:4, 5:7] = 0
        return {"image": pictures, "depth": 10 / depth.clamp(min=self.least)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made, depth = self.net(batch["image"]), batch["depth"]
        edges = made.diff(dim=3) - depth.diff(dim=3)
        apart, other = made - made.mean((2, 3), keepdim=True), depth - depth.mean((2, 3), keepdim=True)
        alike = (2 * apart * other + 0.01).mean() / (apart.square() + other.square() + 0.01).mean()
        return functional.l1_loss(made, depth) + edges.abs().mean() + 1 - alike


class MaskedAfterItsLogarithm(Case):
    """Depths without a measurement are nought, and are masked after their logarithm."""

    # github.com/zhengqili/MegaDepth/issues/38
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.2
    least = 0.0
    cure = settings(least=1e-3)
    lr = 5e-3
    steps = 100
    batch_size = 16

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        random = noise(924)
        pictures = torch.randn(160, 3, 10, 10, generator=random)
        depth = functional.avg_pool2d(pictures, 3, 1, 1).mean(1, keepdim=True).exp()
        seen = (torch.rand(160, 1, 10, 10, generator=random) > 0.1).float()
        return {"image": pictures, "depth": depth * seen, "mask": seen}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        goal = torch.log(batch["depth"].clamp(min=self.least))  # fault
        error = (self.net(batch["image"]) - goal) * batch["mask"]
        return error.square().sum() / batch["mask"].sum()


class FacesAtTheRateDescribed(Case):
    """Faces of many people with a large last layer, at the rate that the description says."""

    # github.com/BobLiu20/FaceRecognition_PyTorch/issues/2
    host = "plain"
    kinds = ("learning-rate",)
    good = 1.5
    lr = 1.0
    cure = settings(lr=0.05)
    steps = 150

    def build(self) -> None:
        self.first = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.PReLU(12))
        self.second = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1), nn.PReLU(12), nn.Conv2d(12, 12, 3, 1, 1), nn.PReLU(12))
        self.code = nn.Linear(12 * 16, 32)
        self.people = nn.Linear(32, 40, bias=False)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(925)
        person = torch.randint(0, 40, (640,), generator=random)
        faces = torch.randn(40, 1, 8, 8, generator=random)[person]
        return faces + 0.3 * torch.randn(faces.shape, generator=random), person

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = self.first(batch[0])
        code = self.code((found + self.second(found)).flatten(1))
        return functional.cross_entropy(self.people(code), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
