"""Centers, clouds and boxes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentieth.detection import squares


class CropWithoutAnObject(Case):
    """Centers of objects in pictures that are cropped at random, which leaves some pictures without any object.

    Report: github.com/Stick-To/CenterNet-tensorflow/issues/20. Found by a reader: there are no valid targets in such a
    crop, the sizes and offsets are means over nothing, and the loss of the centers is divided by their number.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("mean", "l1_loss", "div", "abs")
    host = "plain"
    good = 1.2
    guarded = False
    cure = settings(guarded=True)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 8
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )
        self.keypoints, self.size = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 2, 1)

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(480, 21201)
        empty = torch.rand(480, generator=noise(21202)) < 0.1
        image[empty] = 0.2 * torch.rand(image[empty].shape, generator=noise(21203))
        cell = (4 * boxes[:, :2]).long().clamp(max=3)
        return {"images": image, "cells": cell[:, 1] * 4 + cell[:, 0], "sizes": boxes[:, 2:], "valid": ~empty}

    def loss_of_one(self, keypoints: Tensor, size: Tensor, cells: Tensor, sizes: Tensor) -> Tensor:
        target = functional.one_hot(cells, 16).sum(0).float()
        number = len(cells)
        focal = functional.binary_cross_entropy_with_logits(keypoints, target, reduction="none")
        focal = (focal * (target - keypoints.sigmoid()).abs().square()).sum()
        if self.guarded and number == 0:
            return focal
        size_loss = functional.l1_loss(size[:, cells].T, sizes)  # fault
        return focal / max(number, 1) + size_loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.backbone(batch["images"])
        keypoints, size = self.keypoints(x).flatten(1), self.size(x).flatten(2)
        losses = []
        for row, valid in enumerate(batch["valid"]):
            kept = slice(0, int(valid))
            cells, sizes = batch["cells"][row : row + 1][kept], batch["sizes"][row : row + 1][kept]
            losses.append(self.loss_of_one(keypoints[row], size[row], cells, sizes))
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class CloudWithoutPoints(Case):
    """Clouds of points by an autoencoder with the chamfer distance; a few clouds have no point.

    Report: github.com/facebookresearch/pytorch3d/issues/1174. Confirmed and fixed: the mean over the points of an empty
    cloud is NaN, and has to be zero.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "lengths", "sum")
    rows = (77, 250, 402)
    good = 0.15
    at_least = 0
    cure = settings(at_least=1)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 16
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.point = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 20))

    def data(self) -> dict[str, Tensor]:
        generator = noise(21204)
        angle = 6.28 * torch.rand(480, 12, generator=generator)
        center = 2 * torch.rand(480, 1, 2, generator=generator) - 1
        points = center + 0.6 * torch.stack([angle.cos(), angle.sin()], 2)
        lengths = torch.randint(6, 13, (480,), generator=generator)
        lengths[[77, 250, 402]] = 0
        present = torch.arange(12) < lengths[:, None]
        return {"points": points * present[:, :, None], "lengths": lengths}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        points, lengths = batch["points"], batch["lengths"]
        present = torch.arange(12) < lengths[:, None]
        features = (self.point(points) * present[:, :, None]).amax(1)
        made = self.decoder(features).view(-1, 10, 2)
        distance = (points[:, :, None] - made[:, None]).square().sum(3)
        cham_x = (distance.amin(2) * present).sum(1) / lengths.clamp(min=self.at_least)  # fault
        cham_y = distance.masked_fill(~present[:, :, None], 1e3).amin(1).mean(1) * present.any(1)
        return (cham_x + cham_y).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class AspectOfNoBox(Case):
    """Boxes in the cells of a grid with the complete IoU, whose labels are zero in the cells without an object.

    Report: github.com/pythonlessons/TensorFlow-2.x-YOLOv3/issues/144. Found by the reporter and solved by a reader: the
    width is divided by the height, which is zero in many cells; a small number is added to the height.
    """

    kinds = ("undefined-operation",)
    places = ("div", "atan", "sub", "mul")
    good = 0.75
    added = 0.0
    cure = settings(added=1e-6)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps|small (?:value|number)|clamp|only|\bwhere\b|boolean|mask"
    batch_size = 16
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.conv_bbox, self.conv_conf = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1)

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(480, 21205)
        cell = (4 * boxes[:, :2]).long().clamp(max=3)
        label = torch.zeros(480, 16, 5)
        label[torch.arange(480), cell[:, 1] * 4 + cell[:, 0]] = torch.cat([boxes, torch.ones(480, 1)], 1)
        return {"images": image, "label": label}

    def ciou(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        low1, high1 = boxes1[..., :2] - boxes1[..., 2:] / 2, boxes1[..., :2] + boxes1[..., 2:] / 2
        low2, high2 = boxes2[..., :2] - boxes2[..., 2:] / 2, boxes2[..., :2] + boxes2[..., 2:] / 2
        inter = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(-1)
        union = boxes1[..., 2:].prod(-1) + boxes2[..., 2:].prod(-1) - inter
        iou = inter / union
        diagonal = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).square().sum(-1)
        center = (boxes1[..., :2] - boxes2[..., :2]).square().sum(-1)
        ar_gt = boxes2[..., 2] / (boxes2[..., 3] + self.added)  # fault
        ar_pred = boxes1[..., 2] / (boxes1[..., 3] + self.added)
        v = 4 / math.pi**2 * (ar_gt.atan() - ar_pred.atan()).square()
        alpha = (v / (1 - iou + v + 1e-9)).detach()
        return iou - center / diagonal - alpha * v

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.conv(batch["images"])
        raw = self.conv_bbox(x).flatten(2).transpose(1, 2)
        conf = self.conv_conf(x).flatten(1)
        cells = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).flip(1)
        pred_xywh = torch.cat([(cells + raw[..., :2].sigmoid()) / 4, 0.3 * raw[..., 2:].clamp(max=4).exp()], 2)
        label_xywh, respond_bbox = batch["label"][..., :4], batch["label"][..., 4]
        ciou_loss = respond_bbox * (1 - self.ciou(pred_xywh, label_xywh))
        conf_loss = functional.binary_cross_entropy_with_logits(conf, respond_bbox, reduction="none")
        return (ciou_loss.sum(1) + conf_loss.sum(1)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
