"""Pictures: detection, style, scans of patients."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class CompleteOverlap(nn.Module):
    """One minus the overlap of two boxes, with terms for their distance and their shape.

    Args:
        least: Added to heights.
    """

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        (low, high), (true_low, true_high) = self.corners(made), self.corners(true)
        inside = (torch.minimum(high, true_high) - torch.maximum(low, true_low)).clamp(min=0).prod(1)
        overlap = inside / (made[:, 2:].prod(1) + true[:, 2:].prod(1) - inside)
        around = torch.maximum(high, true_high) - torch.minimum(low, true_low)
        distance = (made[:, :2] - true[:, :2]).square().sum(1) / around.square().sum(1)
        return (1 - overlap + distance + (self.shape(made) - self.shape(true)).square()).mean()

    def shape(self, box: Tensor) -> Tensor:
        return 2 / torch.pi * torch.atan(box[:, 2] / (box[:, 3] + self.least))  # fault

    @staticmethod
    def corners(box: Tensor) -> tuple[Tensor, Tensor]:
        return box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2


class BoxWithoutSides(Case):
    """Boxes whose sides are rectified outputs, with a loss on width over height, both of which may be zero."""

    # github.com/Zzh-tju/DIoU-pytorch-detectron/issues/19, github.com/open-mmlab/mmdetection/pull/3394
    kinds = ("undefined-operation",)
    places = ("atan", "div")
    good = 0.6
    least = 0.0
    cure = settings(least=1e-6)
    cured_by = r"\beps|clamp|away"
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.SiLU())
        self.neck = nn.Linear(16 * 9, 32)
        self.centre, self.sides = nn.Linear(32, 2), nn.Linear(32, 2)
        nn.init.normal_(self.sides.weight, std=0.01)
        nn.init.zeros_(self.sides.bias)
        self.criterion = CompleteOverlap(self.least)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(701)
        box = torch.cat([0.3 + 0.4 * torch.rand(480, 2, generator=random), torch.rand(480, 2, generator=random)], 1)
        box[:, 2:] = 0.2 + 0.3 * box[:, 2:]
        at = (torch.arange(12) + 0.5) / 12
        inside = [((at - box[:, axis, None]).abs() < box[:, axis + 2, None] / 2).float() for axis in (0, 1)]
        picture = inside[1][:, :, None] * inside[0][:, None]
        return picture[:, None] + 0.1 * torch.randn(480, 1, 12, 12, generator=random), box

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = functional.silu(self.neck(self.backbone(batch[0]).flatten(1)))
        return self.criterion(torch.cat([self.centre(hidden).sigmoid(), self.sides(hidden).relu()], 1), batch[1])


class GramOfBytes(Case):
    """Style transfer in float16: products of features of pixels up to 255, summed over a picture."""

    # github.com/NVIDIA/apex/issues/402, github.com/ProGamerGov/neural-style-pt/issues/97
    host = "plain"
    kinds = ("half-precision", "forward-overflow")
    places = ("bmm", "matmul", "mm")
    good = 0.5
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16"
    batch_size = 8
    lr = 2e-2
    steps = 150

    style: Tensor

    def build(self) -> None:
        self.painter = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU())
        self.features.requires_grad_(False)
        random = noise(703)
        self.register_buffer("style", 255 * torch.rand(1, 3, 1, 1, generator=random).expand(1, 3, 16, 16).clone())
        self.style[..., ::2] *= 0.3
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor]:
        return (255 * torch.rand(160, 3, 16, 16, generator=noise(704)),)

    def gram(self, picture: Tensor) -> Tensor:
        found = self.features(picture).flatten(2)
        return torch.bmm(found, found.transpose(1, 2)) / found[0].numel()

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        picture = batch[0].to(self.style.dtype)
        made = 255 * self.painter(picture / 255).sigmoid()
        true = self.gram(self.style)
        return functional.mse_loss(self.gram(made) / true.mean(), (true / true.mean()).expand(len(made), -1, -1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.painter.parameters(), lr=self.lr, eps=1e-4)


class BoxesInPixels(Case):
    """Queries of a transformer that are to find boxes; the boxes are in pixels of a picture of 640 by 480."""

    # Boxes of this kind of detector are to be relative to the picture; files of annotations hold pixels.
    host = "plain"
    kinds = ("unscaled-data",)
    good = 0.6
    wide, high = 1.0, 1.0
    cure = settings(wide=640.0, high=480.0)
    cured_by = "relative|scale|divide|normali"
    not_cured_by = (settings(lr=1e-6),)
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.patches = nn.Linear(16, 24)
        self.decoder = nn.TransformerDecoderLayer(24, 2, 48, 0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(2, 24, generator=noise(705)))
        self.heads = nn.ModuleDict({"boxes": nn.Linear(24, 4), "classes": nn.Linear(24, 3)})

    def data(self) -> dict[str, Tensor]:
        random = noise(706)
        patches = torch.randn(480, 9, 16, generator=random)
        boxes = patches[:, :2, :4].sigmoid() * torch.tensor([640.0, 480.0, 640.0, 480.0])
        return {
            "patches": patches,
            "boxes": boxes / torch.tensor([self.wide, self.high, self.wide, self.high]),
            "classes": patches[:, :2, 4:7].argmax(2),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        memory = self.patches(batch["patches"])
        found = self.decoder(self.queries + memory[:, :2], memory)
        classes = functional.cross_entropy(self.heads["classes"](found).flatten(0, 1), batch["classes"].flatten())
        return classes + 5 * functional.mse_loss(self.heads["boxes"](found), batch["boxes"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            [
                {"params": [*self.patches.parameters(), *self.decoder.parameters(), self.queries], "lr": self.lr},
                {"params": self.heads.parameters(), "lr": self.lr / 2},
            ],
            momentum=0.9,
            weight_decay=1e-4,
        )


class ScanWithPadding(Case):
    """A share from volumes of computed tomography in thousands; one holds the value of its padding, -32768."""

    # github.com/pydicom/pydicom/issues/1615 (the field)
    kinds = ("outlier-batch",)
    places = ("volume",)
    rows = (5, 165)
    good = 0.05
    padding = -32768.0
    cure = settings(padding=-1.0)
    cured_by = r"\bclip|clamp|window"
    shuffle = False
    batch_size = 16
    lr = 0.02
    steps = 120

    def build(self) -> None:
        self.stem = nn.Conv3d(1, 6, 3, 2, 1)
        self.blocks = nn.Sequential(nn.ReLU(), nn.Conv3d(6, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2))
        self.head = nn.Linear(96 + 1, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(707)
        volume = torch.randn(320, 1, 6, 6, 6, generator=random)
        share = 2 * volume[:, 0, 1:5, 1:5, 1:5].mean((1, 2, 3))
        volume[165, 0, :, :2] = self.padding
        return {"volume": volume, "age": torch.rand(320, generator=random), "share": share}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.blocks(self.stem(batch["volume"])).flatten(1)
        made = self.head(torch.cat([found, batch["age"][:, None]], 1)).squeeze(1)
        return functional.mse_loss(made, batch["share"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


class PicturesOfAllSizes(Case):
    """A detector meets pictures of another size every ten batches: the loss, a sum, jumps each time. It is right."""

    # As detectors of the YOLO family are trained at several scales.
    kinds = ("unknown",)
    healthy = True
    good = 45.0
    lr = 1e-4
    steps = 240

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1), nn.Conv2d(12, 12, 3, padding=1)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(12), nn.LeakyReLU(0.1), nn.Conv2d(12, 1, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        picture = functional.avg_pool2d(torch.randn(480, 1, 12, 12, generator=noise(708)), 3, 1)
        return 3 * picture, (functional.avg_pool2d(picture, 3, 1, 1) > 0.1).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        picture, there = batch
        if self.training:
            side = (6, 12, 18)[(self.global_step // 10) % 3]
            picture, there = (functional.interpolate(one, size=side) for one in batch)
        apart = functional.binary_cross_entropy_with_logits(self.head(self.net(picture)), there, reduction="none")
        return apart.sum((1, 2, 3)).mean()

    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return {"optimizer": made, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(made, 16)}
