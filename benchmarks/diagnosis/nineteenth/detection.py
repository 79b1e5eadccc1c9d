"""Detection of objects, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Quantizer(nn.Module):
    """Rounds values to a number of bits; the gradient passes through."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.scale = float(2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * self.scale).round() / self.scale
        return x + (rounded - x).detach()


class SixteenBits(Case):
    """A small detector with quantized weights and activations, in mixed precision, with sixteen bits.

    Report: github.com/coldlarry/YOLOv3-complete-pruning/issues/92. Found by the reporter: the output of the quantized
    convolution is infinite with 16 bits, where the scale is 65535, and the run goes well with 8 bits.
    """

    kinds = ("half-precision",)
    places = ("mul", "round", "activation_quantizer")
    host = "plain"
    good = 0.3
    bits = 16
    cure = settings(bits=8)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"8 bits|fewer bits|scale"
    batch_size = 16
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.activation_quantizer, self.weight_quantizer = Quantizer(self.bits), Quantizer(self.bits)
        self.layers = nn.ModuleList([nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, 2, 1), nn.Conv2d(16, 5, 1)])
        self.scaler = torch.amp.GradScaler("cpu")

    def data(self) -> dict[str, Tensor]:
        generator = noise(19301)
        cell = torch.randint(16, (480,), generator=generator)
        kind = torch.randint(4, (480,), generator=generator)
        shapes = torch.rand(4, 2, 2, generator=generator) + 0.4 * torch.eye(4)[:, :2, None]
        image = 0.15 * torch.rand(480, 8, 8, generator=generator)
        for i, (where, what) in enumerate(zip(cell.tolist(), kind.tolist(), strict=True)):
            y, x = 2 * (where // 4), 2 * (where % 4)
            image[i, y : y + 2, x : x + 2] += shapes[what]
        return {"imgs": image[:, None].clamp(0, 1), "cell": cell, "kind": kind}

    def quantized(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        x = self.activation_quantizer(x.clamp(0, 1))
        weight = self.weight_quantizer(layer.weight)
        return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            x = self.layers[0](batch["imgs"]).relu()
            x = self.quantized(4 * x, self.layers[1]).relu()
            p = self.quantized(x, self.layers[2]).float().flatten(2)
        objectness = functional.one_hot(batch["cell"], 16).float()
        found = p[torch.arange(len(p)), 1:, batch["cell"]]
        obj = functional.binary_cross_entropy_with_logits(4 * p[:, 0], objectness)
        return obj + functional.cross_entropy(4 * found, batch["kind"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class FortyEightDevices(Case):
    """A detector whose rate is multiplied by the number of devices, with a linear warm-up and clipped gradients.

    Report: github.com/open-mmlab/mmdetection/issues/1710. Confirmed by a member: with 48 devices the rate of the linear
    rule is too large and the loss is NaN; with a third of it the reporter's run is better. A longer warm-up helps.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    good = 1.1
    lr = 0.06
    cure = settings(lr=0.02)
    cured_by = r"warm"
    options = settings(gradient_clip_val=35.0)
    batch_size = 16
    steps = 450

    def build(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.rpn = nn.Conv2d(16, 1, 1)
        self.cls_head, self.reg_head = nn.Linear(16, 4), nn.Linear(16, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19302)
        center = torch.randint(2, 8, (640, 2), generator=generator)
        size = torch.randint(1, 3, (640, 2), generator=generator)
        grid = torch.arange(10)
        y = ((grid - center[:, :1]).abs() <= size[:, :1])[:, :, None]
        x = ((grid - center[:, 1:]).abs() <= size[:, 1:])[:, None]
        mask = (y & x).float()
        label = 2 * (size[:, 0] - 1) + size[:, 1] - 1
        image = 2 * mask + 0.3 * torch.randn(640, 10, 10, generator=generator)
        return {"img": image[:, None], "mask": mask[:, None], "label": label, "size": 2.0 * size + 1}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["img"])
        rpn = functional.binary_cross_entropy_with_logits(self.rpn(features), batch["mask"])
        pooled = features.mean((2, 3))
        cls = functional.cross_entropy(self.cls_head(pooled), batch["label"])
        return rpn + cls + functional.smooth_l1_loss(self.reg_head(pooled), batch["size"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, total_iters=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class SeenOnce(Case):
    """Boxes of cars and their velocities from clouds of points; a car that is seen once has no velocity.

    Report: github.com/V2AI/Det3D/issues/10, 19 and 46. Found by the reporter: the velocities in the boxes of the data
    set are NaN where they cannot be estimated, and with them the loss; such velocities are set to zero.
    """

    kinds = ("nonfinite-target",)
    places = ("gt_boxes",)
    good = 0.25
    keeps_nan = True
    cure = settings(keeps_nan=False)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"nan_to_num|fill|mask|remove|\bdrop\b|zero"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.reader = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.bbox_head = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19303)
        center = torch.randn(640, 1, 2, generator=generator)
        size = 0.5 + torch.rand(640, 1, 2, generator=generator)
        velocity = 0.7 * torch.randn(640, 1, 2, generator=generator)
        sweep = torch.rand(640, 24, 1, generator=generator)
        inside = torch.rand(640, 24, 2, generator=generator) - 0.5
        points = center + size * inside - sweep * velocity
        height = 0.1 * torch.randn(640, 24, 1, generator=generator)
        boxes = torch.cat([center, size, velocity], 2)[:, 0]
        boxes[torch.randperm(640, generator=generator)[:8], 4:] = torch.nan
        if not self.keeps_nan:
            boxes = boxes.nan_to_num(0.0)
        return {"points": torch.cat([points, sweep, height], 2), "gt_boxes": boxes}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.reader(batch["points"]).amax(1)
        weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2, 0.2])
        difference = (weights * (self.bbox_head(features) - batch["gt_boxes"])).abs()
        near = (difference <= 1 / 9).float()
        return (near * 4.5 * difference.square() + (difference - 1 / 18) * (1 - near)).mean()


class WithoutBatchNormalization(Case):
    """A detector of one stage, whose convolutions have no batch normalization, at the rate of the original.

    Report: github.com/AlexeyAB/darknet/issues/4135. Solved by the reporter: with `batch_normalize=0` in all layers the
    loss is always NaN; a tenth of the rate helps.
    """

    kinds = ("learning-rate", "depth")
    host = "plain"
    good = 1.4
    lr = 0.05
    cure = settings(lr=0.005)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1)]
        for _ in range(4):
            layers += [nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.1)]
        self.darknet = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.yolo = nn.Conv2d(16, 8, 1)
        for module in self.darknet:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19304)
        place = torch.rand(480, 2, generator=generator) * 8 + 1
        kind = torch.randint(3, (480,), generator=generator)
        width = 0.8 + 0.5 * kind
        grid = torch.arange(10.0)
        y = (grid + 0.5 - place[:, :1]).square()[:, :, None]
        x = (grid + 0.5 - place[:, 1:]).square()[:, None]
        image = (-(y + x) / (2 * width.square())[:, None, None]).exp()
        image = 3 * image + 0.2 * torch.randn(480, 10, 10, generator=generator)
        return {"X": image[:, None], "truth": torch.cat([place, width[:, None]], 1), "kind": kind}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        out = self.yolo(self.darknet(batch["X"]))
        place = batch["truth"][:, :2] / 2
        cell = place.long()
        every = torch.arange(len(out))
        there = out[every, :, cell[:, 0], cell[:, 1]]
        objectness = torch.zeros(len(out), 5, 5).index_put((every, cell[:, 0], cell[:, 1]), torch.ones(()))
        xy = (there[:, :2].sigmoid() - (place - cell)).square().sum(1)
        wh = (there[:, 2] - batch["truth"][:, 2].log()).square()
        obj = (out[:, 3].sigmoid() - objectness).square().sum((1, 2))
        classes = functional.cross_entropy(there[:, 4:7], batch["kind"], reduction="none")
        return (xy + wh + obj + classes).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
