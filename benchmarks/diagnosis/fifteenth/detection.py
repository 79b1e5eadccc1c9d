"""Detection and segmentation of pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class CropsWithoutText(Case):
    """A detector of text in crops of pictures, whose loss is divided by the area of the text; some crops have none.

    Report: github.com/SakuraRiven/EAST/issues/2. Confirmed by the author: the sum of the score map is zero where no
    crop of a small batch has text; the loss is set to zero there.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    host = "plain"
    good = 0.25
    skips_empty = False
    cure = settings(skips_empty=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"without|empty|zero|clamp|skip"
    batch_size = 4
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.score_head, self.geo_head = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 1, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15001)
        image = 0.2 * torch.randn(256, 1, 12, 12, generator=generator)
        score, geo = torch.zeros(256, 1, 12, 12), torch.zeros(256, 1, 12, 12)
        has_text = torch.rand(256, generator=generator) < 0.5
        corner = torch.randint(0, 8, (256, 2), generator=generator)
        size = torch.randint(2, 5, (256, 2), generator=generator)
        for i in range(256):
            if has_text[i]:
                (y, x), (h, w) = corner[i].tolist(), size[i].tolist()
                image[i, 0, y : y + h, x : x + w] += 1.5
                score[i, 0, y : y + h, x : x + w] = 1.0
                geo[i, 0, y : y + h, x : x + w] = h / 4
        return {"image": image, "score": score, "geo": geo}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["image"])
        pred_score, pred_geo = self.score_head(features).sigmoid(), self.geo_head(features)
        gt_score = batch["score"]
        if self.skips_empty and gt_score.sum() < 1:
            return (pred_score.sum() + pred_geo.sum()) * 0
        inter = (gt_score * pred_score).sum()
        classify_loss = 1 - 2 * inter / (gt_score.sum() + pred_score.sum() + 1e-5)
        geo_loss = (pred_geo - batch["geo"]).abs() * gt_score
        return geo_loss.sum() / gt_score.sum() + classify_loss  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class EdgeAttention(Case):
    """Segmentation of road markings with more weight on their edges; some small batches have no edges.

    Report: github.com/Deci-AI/super-gradients/pull/982 and issues/912. Confirmed and fixed: the loss at the pixels of
    the mask is NaN where the mask is empty; it is zero there.
    """

    kinds = ("empty-reduction",)
    places = ("mean",)
    host = "fabric"
    good = 0.15
    checks_empty = False
    cure = settings(checks_empty=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"empty|zero|without|clamp|skip"
    batch_size = 2
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(15002)
        image = 0.3 * torch.randn(256, 3, 10, 10, generator=generator)
        label = torch.zeros(256, 1, 10, 10)
        column = torch.randint(0, 7, (256,), generator=generator)
        has_marking = torch.rand(256, generator=generator) < 0.6
        for i in range(256):
            if has_marking[i]:
                label[i, 0, :, column[i] : column[i] + 3] = 1.0
        image = image + 1.2 * label * torch.tensor([1.0, 0.8, -0.5]).view(3, 1, 1)
        dilated = functional.max_pool2d(label, 3, stride=1, padding=1)
        return {"image": image, "label": label, "edges": dilated - label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        criterion_loss = functional.binary_cross_entropy_with_logits(
            self.net(batch["image"]), batch["label"], reduction="none"
        )
        mask_loss = criterion_loss[batch["edges"] > 0]
        if self.checks_empty and mask_loss.numel() == 0:
            return criterion_loss.mean()
        return criterion_loss.mean() + 0.5 * mask_loss.mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ClassesAsProbabilities(Case):
    """Segmentation of land by a binary loss, whose masks hold the numbers of three classes.

    Report: github.com/fuweifuvtoo/Semantic-segmentation/issues/8. Confirmed by the author: the loss is below zero
    because the masks were those of a cross-entropy of classes, and the loss was the binary one.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("mask",)
    host = "plain"
    good = 0.12
    has_classes = False
    cure = settings(has_classes=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"cross.?entropy|CrossEntropy"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(16, 3 if self.has_classes else 1, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15003)
        image = torch.randn(256, 3, 12, 12, generator=generator)
        smooth = functional.avg_pool2d(image, 3, stride=1, padding=1) * 3
        mask = (smooth[:, 0] > 0.5).long() + (smooth[:, 0] + smooth[:, 1] > 1.0).long()
        return {"image": image, "mask": mask}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.out(self.down(batch["image"]))
        if self.has_classes:
            return functional.cross_entropy(output, batch["mask"])
        return functional.binary_cross_entropy_with_logits(output[:, 0], batch["mask"].float())

    def score(self) -> float:
        data = self.clean()
        output = self.out(self.down(data["image"]))
        found = output.argmax(1) if self.has_classes else (output[:, 0] > 0).long()
        return float((found != data["mask"]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class BoxesAtTheBorder(Case):
    """Boxes of objects against one anchor; annotations are unsigned, and one is taken from a coordinate of zero.

    Report: github.com/jwyang/faster-rcnn.pytorch/issues/75. Found and fixed by the reporter: where the least value is
    close to zero it turns into the largest one when the annotation is loaded; it is set to zero.
    """

    kinds = ("target-out-of-range", "outlier-batch", "undefined-operation")
    places = ("boxes", "log")
    rows = (33, 214, 402)
    good = 0.06
    starts_at_zero = False
    cure = settings(starts_at_zero=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"box|coordinate|annotation|label"
    lr = 2e-3
    steps = 320

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 48),
            nn.ReLU(),
        )
        self.bbox_pred = nn.Linear(48, 4)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15004)
        image = 0.1 * torch.randn(512, 1, 16, 16, generator=generator)
        start = torch.randint(1, 8, (512, 2), generator=generator)
        start[[33, 214, 402], 0] = 0
        end = start + torch.randint(3, 8, (512, 2), generator=generator)
        for i in range(512):
            (x1, y1), (x2, y2) = start[i].tolist(), end[i].tolist()
            image[i, 0, y1 : y2 + 1, x1 : x2 + 1] += 1.0
        boxes = torch.cat([start, end], 1).numpy().astype(np.uint16)
        shifted = boxes - np.uint16(1)
        if self.starts_at_zero:
            shifted[shifted > 60000] = 0
        return {"image": image, "boxes": torch.from_numpy(shifted.astype(np.float32))}

    def bbox_transform(self, boxes: Tensor) -> Tensor:
        gt_widths, gt_heights = boxes[:, 2] - boxes[:, 0] + 1.0, boxes[:, 3] - boxes[:, 1] + 1.0
        gt_ctr_x, gt_ctr_y = boxes[:, 0] + 0.5 * gt_widths, boxes[:, 1] + 0.5 * gt_heights
        return torch.stack(
            [
                (gt_ctr_x - 8.0) / 8.0,
                (gt_ctr_y - 8.0) / 8.0,
                torch.log(gt_widths / 8.0),  # fault
                torch.log(gt_heights / 8.0),
            ],
            1,
        )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        targets = self.bbox_transform(batch["boxes"])
        return functional.smooth_l1_loss(self.bbox_pred(self.backbone(batch["image"])), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
