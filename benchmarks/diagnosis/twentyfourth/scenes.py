"""Scenes, detections and landmarks, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def blobs(count: int, size: int, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy pictures with a spot for each of some points, and the points in pixels."""
    generator = noise(seed)
    place = 1 + (size - 3) * torch.rand(count, points, 2, generator=generator)
    y, x = torch.arange(float(size))[:, None], torch.arange(float(size))
    distance = (y - place[..., 0, None, None]).square() + (x - place[..., 1, None, None]).square()
    heat = (-distance / 2).exp()
    strength = torch.linspace(1.5, -1.0, points)[:, None, None] if points > 1 else 1.0
    return (heat * strength).sum(1, keepdim=True) + 0.05 * torch.randn(count, 1, size, size, generator=generator), place


class LanesOnSeveralCards(Case):
    """Drivable areas of a road with a Tversky loss, rewritten for several cards: the loss is nasty.

    Report: github.com/datvuthanh/HybridNets/issues/91. Found by a reader who made it work: the loss has to be told that
    it gets scores instead of probabilities. It is raised to the power of 4/3.
    """

    kinds = ("undefined-operation", "loss-without-floor")
    places = ("pow", "div")
    host = "fabric"
    good = 0.15
    from_logits = False
    cure = settings(from_logits=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"sigmoid|probabilit|logits"
    batch_size = 8
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.bifpndecoder = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2))
        self.segmentation_head = nn.Conv2d(32, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24101)
        shape = (320, 1, 1)
        y, x = torch.arange(16.0)[:, None], torch.arange(16.0)
        middle = 4 + 8 * torch.rand(shape, generator=generator)
        slope = 0.2 + 0.3 * torch.rand(shape, generator=generator)
        area = (x - middle).abs() < 1 + slope * y
        image = 0.5 + 0.3 * area + 0.1 * torch.randn(320, 16, 16, generator=generator)
        return {"image": image[:, None], "segmentation": area[:, None].float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        y_pred = self.segmentation_head(self.bifpndecoder(self.encoder(batch["image"])))
        y_pred = (y_pred.sigmoid() if self.from_logits else y_pred).flatten()
        y_true = batch["segmentation"].flatten()
        intersection = (y_pred * y_true).sum()
        fp, fn = (y_pred * (1 - y_true)).sum(), ((1 - y_pred) * y_true).sum()
        score = intersection / (intersection + 0.7 * fp + 0.3 * fn).clamp(min=1e-7)  # fault
        return (1 - score) ** (4 / 3)  # fault


class PicturesWithoutBoxes(Case):
    """Instances in an own dataset by a detector in two stages: the loss of the class is NaN.

    Report: github.com/matterport/Mask_RCNN/issues/1236. Found by the reporter: some pictures have no box, and are
    removed. The loss of the proposals is divided by how many of them have a class of the dataset.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 0.45
    removes_empty = False
    cure = settings(removes_empty=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"remove|filter|at least|clamp|\bskip"
    batch_size = 2
    lr = 2e-3
    steps = 600

    def build(self) -> None:
        self.fpn = nn.Sequential(nn.Linear(20, 64), nn.ReLU())
        self.mrcnn_class_logits, self.mrcnn_bbox_fc = nn.Linear(64, 3), nn.Linear(64, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24102)
        class_ids = torch.randint(1, 4, (500, 4), generator=generator)
        class_ids[torch.rand(500, 4, generator=generator) < 0.3] = 0
        class_ids[torch.rand(500, generator=generator) < 0.12] = 0
        boxes = torch.randn(500, 4, 2, generator=generator)
        shape = torch.randn(4, 18, generator=generator)
        roi = torch.cat([shape[class_ids] + 0.7 * torch.randn(500, 4, 18, generator=generator), boxes], 2)
        keep = class_ids.amax(1) > 0 if self.removes_empty else torch.ones(500, dtype=torch.bool)
        return {"rois": roi[keep], "target_class_ids": class_ids[keep], "target_bbox": boxes[keep].tanh()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, target = self.fpn(batch["rois"]), batch["target_class_ids"]
        pred_active = (target > 0).float()
        entropy = functional.cross_entropy(
            self.mrcnn_class_logits(x).flatten(0, 1), (target - 1).clamp(min=0).flatten(), reduction="none"
        )
        class_loss = (entropy * pred_active.flatten()).sum() / pred_active.sum()  # fault
        distance = (self.mrcnn_bbox_fc(x) - batch["target_bbox"]).abs().mean(2)
        return class_loss + (distance * pred_active).mean()


class BoxesOfAnUnsureTeacher(Case):
    """Detection with few labels: where the teacher finds nothing the pseudo label is the background and a box of zeros.

    Report: github.com/facebookresearch/unbiased-teacher/issues/56. Found by the reporter: a box of zeros makes the loss
    NaN. Advised by a reader: pictures without predictions are left out.
    """

    kinds = ("undefined-operation", "nonfinite-target", "target-out-of-range")
    places = ("log", "mul")
    good = 0.6
    leaves_out = False
    cure = settings(leaves_out=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"leave out|remove|filter|mask|clamp"
    batch_size = 32
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.roi_heads = nn.ModuleDict({"cls": nn.Linear(64, 4), "reg": nn.Linear(64, 2)})
        self.teacher = deepcopy(nn.ModuleList([self.backbone, self.roi_heads])).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24103)
        label = torch.randint(1, 4, (960,), generator=generator)
        size = 8 * (0.5 * torch.randn(960, 2, generator=generator)).exp()
        shape = torch.randn(4, 14, generator=generator)
        features = torch.cat([shape[label] + torch.randn(960, 14, generator=generator), (size / 8).log()], 1)
        has_label = (torch.arange(960) % 4 == 0).float()
        return {"features": features, "gt_classes": label, "gt_size": size, "has_label": has_label}

    @torch.no_grad()
    def pseudo_labels(self, features: Tensor) -> tuple[Tensor, Tensor]:
        backbone, heads = self.teacher
        x = backbone(features)
        confidence, label = heads["cls"](x).softmax(1).max(1)
        is_sure = (confidence > 0.7) & (label > 0)
        size = 8 * heads["reg"](x).exp()
        return torch.where(is_sure, label, 0), torch.where(is_sure[:, None], size, 0.0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        pseudo_label, pseudo_size = self.pseudo_labels(batch["features"])
        known = batch["has_label"] > 0
        label = torch.where(known, batch["gt_classes"], pseudo_label)
        size = torch.where(known[:, None], batch["gt_size"], pseudo_size)
        if self.leaves_out:
            keep = label > 0
            batch, label, size = {"features": batch["features"][keep]}, label[keep], size[keep]
        loss = self.losses(batch["features"], label, size)
        for old, new in zip(self.teacher.parameters(), self.student(), strict=True):
            old.data.lerp_(new.data, 0.02)
        return loss

    def student(self) -> list[nn.Parameter]:
        return [*self.backbone.parameters(), *self.roi_heads.parameters()]

    def losses(self, features: Tensor, label: Tensor, size: Tensor) -> Tensor:
        x = self.backbone(features)
        deltas = (size / 8).log()
        loss_box_reg = (self.roi_heads["reg"](x) - deltas).abs() * (label > 0)[:, None]
        return functional.cross_entropy(self.roi_heads["cls"](x), label) + loss_box_reg.mean()

    def score(self) -> float:
        """The loss with all labels."""
        batch = self.data()
        return float(self.losses(batch["features"], batch["gt_classes"], batch["gt_size"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student(), lr=self.lr)


class HandsAndFace(Case):
    """Heat maps of the hands and the face from pictures of depth, in stages: all zero after the first steps.

    Report: github.com/ZheC/Realtime_Multi-Person_Pose_Estimation/issues/224. Solved by the reporter: gradient descent
    with a small rate, instead of the other optimizer.
    """

    kinds = ("learning-rate",)
    good = 0.4
    lr = 0.05
    adam = True
    cure = settings(adam=False, lr=2e-3)
    cured_by = r"SGD|learning rate|\blr\b"
    batch_size = 16
    steps = 300

    def build(self) -> None:
        self.vgg = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.stage1 = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 1))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(27, 32, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 3, 1),
            )
            for _ in range(2)
        )

    def data(self) -> dict[str, Tensor]:
        image, place = blobs(480, 16, 3, 24104)
        grid = torch.arange(8.0)
        distance = (grid[:, None] - place[..., 0, None, None] / 2).square()
        distance = distance + (grid - place[..., 1, None, None] / 2).square()
        return {"image": image, "heatmaps": (-distance).exp()}

    def maps(self, image: Tensor) -> list[Tensor]:
        x = self.vgg(image)
        found = [self.stage1(x)]
        for stage in self.stages:
            found.append(stage(torch.cat([x, found[-1]], 1)))
        return found

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        errors = [(one - batch["heatmaps"]).square().sum() / 2 for one in self.maps(batch["image"])]
        return torch.stack(errors).sum() / len(batch["image"])

    def score(self) -> float:
        """The error of the last stage, relative to that of zeros."""
        batch = self.data()
        return float(
            (self.maps(batch["image"])[-1] - batch["heatmaps"]).square().sum() / batch["heatmaps"].square().sum()
        )

    def configure_optimizers(self) -> Any:
        if self.adam:
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SpikesOfTheAlignment(Case):
    """Landmarks of faces by stacked networks: spikes of the loss, then NaN.

    Report: github.com/deepinsight/insightface/issues/572. Found by the reporter: a rate that is lower by a thousand,
    for two networks.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 2.3
    lr = 0.6
    cure = settings(lr=6e-4)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1 if index == 0 else 6, 24, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(24, 24, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(24, 5, 1),
            )
            for index in range(2)
        )

    def data(self) -> dict[str, Tensor]:
        image, place = blobs(480, 12, 5, 24105)
        pixel = place.round().long()
        return {"image": image, "label": pixel[..., 0] * 12 + pixel[..., 1]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, total = batch["image"], torch.zeros(())
        for one in self.hourglasses:
            out = one(x)
            total = total + functional.cross_entropy(out.flatten(2).flatten(0, 1), batch["label"].flatten())
            x = torch.cat([batch["image"], out], 1)
        return total / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=self.lr)
