"""Detection of objects, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RateOfEightDevices(Case):
    """A detector with a short warm-up and two pictures a batch, at the rate for eight devices.

    Report: github.com/facebookresearch/maskrcnn-benchmark/issues/295. Confirmed by the author: the rate of the
    configuration was kept for a single device.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    good = 0.65
    lr = 0.2
    cure = settings(lr=0.005)
    batch_size = 2
    steps = 600

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
        )
        self.rpn = nn.Conv2d(32, 1, 1)
        self.box_head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 7))

    def data(self) -> dict[str, Tensor]:
        generator = noise(17001)
        center = torch.randint(2, 10, (600, 2), generator=generator)
        size = torch.randint(1, 3, (600, 2), generator=generator)
        label = torch.randint(3, (600,), generator=generator)
        grid = torch.arange(12)
        inside = ((grid - center[:, :1]).abs() <= size[:, :1])[:, :, None]
        inside = inside & ((grid - center[:, 1:]).abs() <= size[:, 1:])[:, None]
        image = inside * (label[:, None, None] + 1.0) + 0.2 * torch.randn(600, 12, 12, generator=generator)
        box = torch.cat([center / 6 - 1, size - 1.5], 1)
        return {"image": image[:, None], "box": box, "label": label, "inside": inside.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["image"])
        objectness = functional.max_pool2d(batch["inside"][:, None], 2)
        rpn = functional.binary_cross_entropy_with_logits(self.rpn(features), objectness)
        head = self.box_head(features)
        boxes = functional.smooth_l1_loss(head[:, :4], batch["box"])
        return rpn + boxes + functional.cross_entropy(head[:, 4:], batch["label"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, total_iters=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class ConfidenceByLogarithm(Case):
    """Objects in the cells of a grid, with a cross-entropy of confidences that is written out.

    Report: github.com/miemie2013/Paddle-DIOU-YOLOv3/issues/1. Fixed by the author: within the first epoch the loss is
    NaN, at a smaller rate as well, since no small number was added inside of the logarithm.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.2
    eps = 0.0
    cure = settings(eps=1e-7)
    not_cured_by = (settings(lr=3e-3),)
    cured_by = r"small (?:value|number)|\beps|clamp|with_logits|logsigmoid"
    batch_size = 16
    lr = 1e-2
    steps = 400

    def build(self) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)
        )
        self.head = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.1), nn.Conv2d(32, 3, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(17002)
        cell = torch.randint(0, 6, (640, 2), generator=generator)
        offset = torch.rand(640, 2, generator=generator)
        brightness = 2 + 8 * torch.rand(640, generator=generator)
        image = 0.1 * torch.randn(640, 1, 12, 12, generator=generator)
        for i, (y, x) in enumerate(cell.tolist()):
            image[i, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += brightness[i] * (0.5 + offset[i, 0])
        conf = torch.zeros(640, 6, 6)
        conf[torch.arange(640), cell[:, 0], cell[:, 1]] = 1.0
        return {"image": image, "conf": conf, "offset": offset}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        out = self.head(self.body(batch["image"]))
        conf, label = out[:, 0].sigmoid(), batch["conf"]
        conf_loss = -label * (conf + self.eps).log() - (1 - label) * (1 - conf + self.eps).log()  # fault
        error = (out[:, 1:].sigmoid() - batch["offset"][:, :, None, None]).square().sum(1)
        return conf_loss.sum((1, 2)).mean() + (label * error).sum((1, 2)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class HelmetsAtOnce(Case):
    """Helmets and heads by a detector whose losses are sums over the cells of a picture, by descent with momentum.

    Report: github.com/njvisionpower/Safety-Helmet-Wearing-Dataset/issues/57. Solved by the reporter: all four losses
    are NaN, until the rate is made smaller.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.7
    lr = 0.05
    cure = settings(lr=1e-3)
    batch_size = 8
    steps = 390

    def build(self) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(24, 48, 3, 2, 1), nn.LeakyReLU(0.1)
        )
        self.neck = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.LeakyReLU(0.1))
        self.out = nn.Conv2d(48, 7, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17003)
        cell = torch.randint(0, 7, (640, 2), generator=generator)
        label = torch.randint(2, (640,), generator=generator)
        scale = torch.rand(640, 2, generator=generator)
        image = 0.2 * torch.randn(640, 1, 14, 14, generator=generator)
        for i, (y, x) in enumerate(cell.tolist()):
            image[i, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += 1 + 2 * label[i]
            image[i, 0, 2 * y, 2 * x] += scale[i, 0]
        target = torch.zeros(640, 7, 7, 7)
        target[torch.arange(640), 0, cell[:, 0], cell[:, 1]] = 1.0
        target[torch.arange(640), 1:3, cell[:, 0], cell[:, 1]] = 0.5
        target[torch.arange(640), 3:5, cell[:, 0], cell[:, 1]] = scale[:, :1] - 0.5
        target[torch.arange(640), 5 + label, cell[:, 0], cell[:, 1]] = 1.0
        return {"image": image, "target": target}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        out, target = self.out(self.neck(self.body(batch["image"]))), batch["target"]
        there = target[:, :1]
        obj = functional.binary_cross_entropy_with_logits(out[:, :1], there, reduction="none")
        center = functional.binary_cross_entropy_with_logits(out[:, 1:3], target[:, 1:3], reduction="none")
        classes = functional.binary_cross_entropy_with_logits(out[:, 5:], target[:, 5:], reduction="none")
        scale = (out[:, 3:5] - target[:, 3:5]).abs()
        others = (there * (center - 0.693)).sum() + (there * scale).sum() + (there * classes).sum()
        return (obj.sum() + others) / len(out)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class BoxesWithoutArea(Case):
    """Boxes in the cells of a grid by a generalized overlap, which is taken in all cells and masked afterwards.

    Report: github.com/YunYang1994/tensorflow-yolov3/issues/225. Solved by the reporter: where a true and a predicted
    box both have no width and height, their union and what encloses them are zero, and the overlap divides by them.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    host = "plain"
    good = 0.3
    eps = 0.0
    cure = settings(eps=1e-9)
    not_cured_by = (settings(lr=1e-3),)
    cured_by = r"small (?:value|number)|\beps|clamp|\bwhere\b|\bmask"
    batch_size = 16
    lr = 1e-2
    steps = 450

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv2d(1, 32, 1), nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.1))
        self.box, self.conf = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17004)
        cell = torch.randint(0, 8, (512, 2), generator=generator)
        size = torch.rand(512, generator=generator)
        image = -2 + 0.6 * torch.randn(512, 1, 8, 8, generator=generator)
        box = torch.zeros(512, 4, 8, 8)
        every = torch.arange(512)
        image[every, 0, cell[:, 0], cell[:, 1]] = 0.5 + size
        extent = (1 + 4 * size).exp()
        center = (cell.flip(1) + 0.5) * 52
        box[every, :, cell[:, 0], cell[:, 1]] = torch.cat([center, extent[:, None], extent[:, None]], 1)
        return {"image": image, "box": box}

    def giou(self, a: Tensor, b: Tensor) -> Tensor:
        low_a, high_a = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
        low_b, high_b = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
        inter = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
        union = (high_a - low_a).prod(1) + (high_b - low_b).prod(1) - inter
        enclose = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).clamp(min=0).prod(1)
        iou = inter / (union + self.eps)  # fault
        return iou - (enclose - union) / (enclose + self.eps)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.body(batch["image"])
        raw, box = self.box(features), batch["box"]
        there = (box[:, 2] > 0).float()
        rows = torch.arange(8.0)
        grid = torch.stack([rows.expand(8, 8), rows[:, None].expand(8, 8)])
        pred = torch.cat([(grid + raw[:, :2].sigmoid()) * 52, 30 * raw[:, 2:].exp()], 1)
        size = 2 - box[:, 2:].prod(1) / 416**2
        giou_loss = (there * size * (1 - self.giou(pred, box))).sum((1, 2)).mean()
        conf = functional.binary_cross_entropy_with_logits(self.conf(features)[:, 0], there, reduction="none")
        return giou_loss + conf.sum((1, 2)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
