"""Detection of objects and of their relations, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class BoxesCountedFromZero(Case):
    """Boxes of an own dataset are counted from zero; the loader takes one off, and keeps them without a sign.

    Report: github.com/ruotianluo/pytorch-faster-rcnn/issues/105. Solved by the reporter: the code is written for
    annotations that begin with one, so that boxes at the border have a wrong width, whose logarithm is taken.
    """

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "boxes")
    host = "plain"
    good = 0.35
    first = 1
    cure = settings(first=0)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|offset|remove|\bdrop\b|filter|range|subtract|positive"
    batch_size = 8
    lr = 2e-3
    steps = 390

    def build(self) -> None:
        self.rcnn_base = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )
        self.rpn_cls = nn.Conv2d(24, 1, 1)
        self.top = nn.Sequential(nn.Flatten(), nn.Linear(24 * 64, 64), nn.ReLU())
        self.bbox_pred, self.cls_score = nn.Linear(64, 4), nn.Linear(64, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18001)
        low = torch.randint(1, 10, (640, 2), generator=generator)
        low[torch.randperm(640, generator=generator)[:14], 0] = 0
        size = torch.randint(3, 6, (640, 2), generator=generator)
        gt_classes = torch.randint(2, (640,), generator=generator)
        high = low + size - 1
        grid = torch.arange(16)
        inside = ((grid >= low[:, 1:]) & (grid <= high[:, 1:]))[:, :, None]
        inside = inside & ((grid >= low[:, :1]) & (grid <= high[:, :1]))[:, None]
        image = inside * (1.0 + gt_classes[:, None, None]) + 0.2 * torch.randn(640, 16, 16, generator=generator)
        boxes = (torch.cat([low, high], 1) - self.first) % 65536
        return {
            "image": image[:, None],
            "boxes": boxes.float(),
            "gt_classes": gt_classes,
            "labels": functional.max_pool2d(inside[:, None].float(), 2),
        }

    def bbox_transform(self, boxes: Tensor) -> Tensor:
        size = boxes[:, 2:] - boxes[:, :2] + 1
        center = boxes[:, :2] + 0.5 * size
        return torch.cat([(center - 8) / 6, torch.log(size / 6)], 1)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.rcnn_base(batch["image"])
        rpn_cls = functional.binary_cross_entropy_with_logits(self.rpn_cls(features), batch["labels"])
        top = self.top(features)
        box = functional.smooth_l1_loss(self.bbox_pred(top), self.bbox_transform(batch["boxes"]))
        return rpn_cls + box + functional.cross_entropy(self.cls_score(top), batch["gt_classes"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class WarmUpOfFewSteps(Case):
    """Masks of objects by a changed detector on several devices, with a warm-up of few iterations.

    Report: github.com/facebookresearch/maskrcnn-benchmark/issues/841. Solved by the author: on four devices the loss is
    NaN within the first iterations, until the number of iterations of the warm-up is raised.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    good = 1.0
    lr = 0.02
    warmup_iters = 10
    cure = settings(warmup_iters=400)
    cured_by = r"warm"
    batch_size = 16
    steps = 500

    def build(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.mask_head = nn.Conv2d(16, 1, 1)
        self.class_head, self.box_head = nn.Linear(16, 3), nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18002)
        center = torch.randint(3, 9, (640, 2), generator=generator)
        radius = torch.randint(1, 4, (640, 1, 1), generator=generator)
        label = torch.randint(3, (640,), generator=generator)
        grid = torch.arange(12)
        y = (grid - center[:, :1]).abs()[:, :, None]
        x = (grid - center[:, 1:]).abs()[:, None]
        shapes = torch.stack([torch.maximum(y, x), y + x, torch.maximum(y, 2 * x)], 1)
        mask = shapes[torch.arange(640), label] <= radius
        image = 2.0 * mask + 0.3 * torch.randn(640, 12, 12, generator=generator)
        return {
            "image": image[:, None],
            "mask": mask[:, None].float(),
            "label": label,
            "size": 2.0 * radius.flatten() + 1,
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["image"])
        masks = functional.binary_cross_entropy_with_logits(self.mask_head(features), batch["mask"])
        labels = functional.cross_entropy(self.class_head(features.amax((2, 3))), batch["label"])
        size = functional.mse_loss(self.box_head(features.mean((2, 3)))[:, 0], batch["size"])
        return masks + labels + size

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 30, total_iters=self.warmup_iters)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class EightTimesForSixteen(Case):
    """Relations of regions of a picture, by attention between regions and words, at eight times the rate.

    Report: github.com/gitzyong812/VS3_CVPR23/issues/7. Solved by a reader: with four devices and a batch of sixteen the
    rate was multiplied by eight, which is too much; with twice the rate there is no NaN.
    """

    kinds = ("learning-rate",)
    good = 0.5
    lr = 0.016
    cure = settings(lr=0.004)
    batch_size = 16
    steps = 300

    def build(self) -> None:
        self.region, self.word = nn.Linear(12, 32), nn.Embedding(6, 32)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=False) for _ in range(3)
        )
        self.predicate = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18003)
        region = torch.randn(768, 6, 12, generator=generator)
        subject = torch.randint(6, (768,), generator=generator)
        related = (subject + torch.randint(1, 6, (768,), generator=generator)) % 6
        every = torch.arange(768)
        kind = torch.randint(3, (768,), generator=generator)
        region[every, subject, kind] += 3
        larger = region[every, related, 4] > 0
        predicate = 2 * kind + larger
        region[every, subject, 11] += 4
        region[every, related, 10] += 4
        return {"region": region, "subject": subject, "object": related, "predicate": predicate}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.region(batch["region"])
        words = self.word.weight.expand(len(x), -1, -1)
        for layer in self.layers:
            x = layer(x, words)
        every = torch.arange(len(x))
        pair = torch.cat([x[every, batch["subject"]], x[every, batch["object"]]], 1)
        return functional.cross_entropy(self.predicate(pair), batch["predicate"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-4)
