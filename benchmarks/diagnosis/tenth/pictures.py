"""Lanes, faces, depths and boxes in pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SlicesOfLanes(Case):
    """Messages pass from slice to slice of a map, down and up again, with weights for plain rectified layers."""

    # github.com/XingangPan/SCNN/issues/82
    kinds = ("recurrence", "initialization")
    host = "plain"
    good = 0.4
    scale = 1.0
    cure = settings(scale=5**-0.5)
    cured_by = "smaller|shorter|warm"
    lr = 0.1
    steps = 100

    def build(self) -> None:
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.down, self.up = (nn.Conv1d(8, 8, 9, padding=4) for _ in range(2))
        for passing in (self.down, self.up):
            nn.init.kaiming_normal_(passing.weight, nonlinearity="relu")
            with torch.no_grad():
                passing.weight.mul_(self.scale)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9201)
        where = torch.randint(2, 14, (160, 1, 1, 1), generator=random)
        lane = (torch.arange(16) - where).abs().le(1).float().expand(160, 1, 36, 16)
        return lane * 2 + torch.randn(160, 1, 36, 16, generator=random) / 2, lane.clone()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        slices = list(self.first(batch[0]).relu().unbind(2))
        for passing in (self.down, self.up):
            for number in range(1, len(slices)):
                slices[number] = slices[number] + passing(slices[number - 1]).relu()
            slices.reverse()
        return functional.binary_cross_entropy_with_logits(self.last(torch.stack(slices, 2)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class RateOfFaces(Case):
    """A detector of faces with a loss of classes and one of offsets, which does not bear the first rate."""

    # github.com/lxg2015/faceboxes/issues/5
    kinds = ("learning-rate",)
    host = "plain"
    good = 0.7
    cure = settings(lr=0.01)
    lr = 1.0
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.classes, self.offsets = nn.Linear(64, 2), nn.Linear(64, 4)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(9202)
        anchors = torch.randn(640, 20, generator=random)
        return anchors, (anchors[:, 0] > 0.5).long(), anchors[:, 1:5] * 2 + torch.randn(640, 4, generator=random) / 5

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        anchors, face, offsets = batch
        hidden = self.net(anchors)
        apart = functional.smooth_l1_loss(self.offsets(hidden)[face == 1], offsets[face == 1], reduction="sum")
        return functional.cross_entropy(self.classes(hidden), face) + apart / face.sum().clamp(min=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class LogarithmsOfErrors(Case):
    """Depths with the logarithm of an error and a half as the loss: it passes zero as they get better. It is right."""

    # github.com/JunjH/Revisiting_Single_Depth_Estimation/issues/9
    kinds = ("unknown",)
    healthy = True
    host = "plain"
    good = -0.2
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 1, 5, padding=2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9203)
        depth = 3 + torch.randn(320, 1, 32, generator=random).cumsum(2) / 4
        return depth + 0.1 * torch.randn(320, 1, 32, generator=random), depth

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        error = self.net(batch[0]) - batch[1]
        return (error.abs() + 0.5).log().mean() + (error.diff(dim=2).abs() + 0.5).log().mean()


class LabelsWithoutDepth(Case):
    """A scale-invariant loss of each picture's measured pixels; a few pictures of the data have none."""

    # github.com/isl-org/ZoeDepth/issues/54
    kinds = ("empty-reduction", "undefined-operation")
    good = 0.3
    has_empty = True
    cure = settings(has_empty=False)
    cured_by = "drop|remove|skip|valid|empty"
    lr = 3e-3
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 1, 5, padding=2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9204)
        depth = (torch.randn(640, 1, 32, generator=random).cumsum(2) / 4).exp()
        picture = depth.log() + 0.1 * torch.randn(640, 1, 32, generator=random)
        measured = torch.rand(640, 1, 32, generator=random) < 0.6
        if self.has_empty:
            measured[[120, 377, 511]] = False
        return picture, depth * measured

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        picture, depth = batch
        measured = (depth > 0).float()
        number = measured.sum((1, 2))
        difference = (self.net(picture) - torch.where(depth > 0, depth, 1.0).log()) * measured
        square, mean = difference.square().sum((1, 2)) / number, difference.sum((1, 2)) / number
        return (square - 0.85 * mean.square() + 1e-6).sqrt().mean()


class BoxesInPixels(Case):
    """Overlaps of boxes under autocast to float16: the area of a large box in pixels is above its largest number."""

    # github.com/pytorch/vision/issues/3371
    kinds = ("half-precision", "forward-overflow")
    good = 0.5
    in_half = True
    cure = settings(in_half=False)
    cured_by = "float32|bfloat16"
    lr = 1e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9205)
        corner = 100 * torch.rand(640, 2, generator=random)
        size = 40 + 110 * torch.rand(640, 2, generator=random)
        size[torch.rand(640, generator=random) < 0.01] = 400.0
        boxes = torch.cat([corner, corner + size], 1)
        return torch.cat([boxes, boxes.square() / 300], 1) / 100, boxes

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen, true = batch
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            out = self.net(seen) + 1
            low, size = out[:, :2] * 100, functional.softplus(out[:, 2:]) * 100
            true = true.to(out.dtype)
            high, true_size = low + size, true[:, 2:] - true[:, :2]
            sides = torch.minimum(high, true[:, 2:]) - torch.maximum(low, true[:, :2])
            both = sides.clamp(min=0)
            shared = both[:, 0] * both[:, 1]
            union = size[:, 0] * size[:, 1] + true_size[:, 0] * true_size[:, 1] - shared
            around = torch.maximum(high, true[:, 2:]) - torch.minimum(low, true[:, :2])
            hull = around[:, 0] * around[:, 1]
            return (1 - shared / union + (hull - union) / hull).float().mean()
