"""Pictures: segmentation, X-rays, super-resolution, detection."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


def overlap_loss(chance: Tensor, mask: Tensor) -> Tensor:
    """Return one minus twice the intersection of two masks over the sum of their areas."""
    both, area = (chance * mask).sum(), (chance + mask).sum()
    return 1 - 2 * both / area


class OverlapInHalf(Case):
    """Lungs in float16: the areas of masks of a batch, as numbers of pixels, do not fit into the number format."""

    # github.com/qubvel-org/segmentation_models.pytorch/issues/463
    kinds = ("half-precision",)
    places = ("sum", "div")
    good = 0.35
    precision = "16-true"
    options = settings(precision="16-true")
    cure = settings(options=settings(precision="32-true"))
    cured_by = "float32|bfloat16|32-true|mixed"
    batch_size = 8
    lr = 5e-2
    steps = 30

    def build(self) -> None:
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1, bias=False)
        self.bias = nn.Parameter(torch.ones(()))

    def data(self) -> tuple[Tensor, Tensor]:
        lungs = functional.interpolate(torch.randn(64, 1, 16, 16, generator=noise(731)) + 1.3, size=112)
        return lungs + 0.1, (lungs > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = self.head(self.body(batch[0].to(self.bias.dtype)).relu()) + self.bias
        mask = batch[1].to(found.dtype)
        return overlap_loss(found.sigmoid(), mask) + functional.binary_cross_entropy_with_logits(found, mask)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class UncertainFindings(Case):
    """Findings in X-rays of the chest, where -1 stands for uncertain, as labels of a binary cross-entropy."""

    # github.com/Event-AHU/Medical_Image_Analysis/issues/26, github.com/stanfordmlgroup/chexpert-labeler/issues/29
    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("findings",)
    good = 0.4
    uncertain = -1.0
    cure = settings(uncertain=0.0)
    cured_by = "-1"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.dense = nn.ModuleList([nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(9, 8, 3, padding=1)])
        self.norm, self.heads = nn.BatchNorm2d(17), nn.ModuleList(nn.Linear(17 * 9, 1) for _ in range(4))

    def data(self) -> dict[str, Tensor]:
        scan = torch.randn(480, 1, 9, 9, generator=noise(732))
        parts = functional.avg_pool2d(scan, 3).flatten(1)[:, :4] * 3
        findings = (parts > 0).float()
        findings[(parts < 0.1) & (parts > -0.6)] = self.uncertain
        return {"scan": scan, "findings": findings}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = batch["scan"]
        for layer in self.dense:
            found = torch.cat([found, layer(found).relu()], 1)
        pooled = functional.avg_pool2d(self.norm(found), 3).flatten(1)
        scores = torch.cat([head(pooled) for head in self.heads], 1)
        return functional.binary_cross_entropy_with_logits(scores, batch["findings"])


class SumOfAllBefore(Case):
    """Super-resolution without normalization, where a layer gets the sum of what all layers before it made."""

    # github.com/twtygqyy/pytorch-SRDenseNet/issues/2
    host = "plain"
    kinds = ("depth", "initialization")
    good = 0.22
    is_mean = False
    cure = settings(is_mean=True)
    cured_by = "divide|mean|average|normali|scale"
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 16
    lr = 1e-3
    steps = 120

    def build(self) -> None:
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        layers = [nn.Conv2d(12, 12, 3, padding=1) for _ in range(14)]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.up = nn.Sequential(nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2))

    def data(self) -> tuple[Tensor, Tensor]:
        fine = functional.interpolate(torch.randn(240, 1, 4, 4, generator=noise(733)), size=12, mode="bilinear")
        return functional.avg_pool2d(fine, 2), fine

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = [self.first(batch[0])]
        for layer in self.layers:
            before = torch.stack(made).sum(0)
            made.append(layer(before / len(made) if self.is_mean else before).relu())
        last = torch.stack(made).sum(0)
        return functional.l1_loss(self.up(last / len(made) if self.is_mean else last), batch[1])


class BiasesAtTheirOwnRate(Case):
    """A detector whose warm-up begins with a high rate of the biases; in the configuration it is 300 for 0.1."""

    # github.com/ultralytics/yolov5/issues/13276, github.com/ultralytics/yolov5/issues/4279 (the setting)
    host = "plain"
    kinds = ("learning-rate",)
    good = 0.35
    factor = 6000.0
    cure = settings(factor=2.0)
    cured_by = "biases|warm"
    other_cures = settings(**{rf"param_groups\[1\]`.*lr={NUMBER}": settings(first_rate=float)})
    lr = 0.05
    first_rate = 0.0
    steps = 150

    def build(self) -> None:
        self.trunk = nn.ModuleList([nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)])
        self.detect = nn.Conv2d(12, 1, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(480, 1, 12, 12, generator=noise(734))
        return picture, (functional.avg_pool2d(picture, 4) > 0.1).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = batch[0]
        for layer in self.trunk:
            found = functional.silu(layer(found))
        return functional.binary_cross_entropy_with_logits(self.detect(found), batch[1])

    def configure_optimizers(self) -> Any:
        biases = [weight for name, weight in self.named_parameters() if name.endswith("bias")]
        weights = [weight for name, weight in self.named_parameters() if name.endswith("weight")]
        made = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=self.lr, momentum=0.9, nesterov=True)
        factor = self.first_rate / self.lr or self.factor
        shapes = [
            lambda step: min(1.0, (step + 1) / 40),
            lambda step: max(1.0, factor - (factor - 1) * step / 40),
        ]
        return {"optimizer": made, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(made, shapes)}


class OneBoxInPixels(Case):
    """Boxes relative to their picture, except for one file of annotations, which holds pixels."""

    # As annotations of several tools are merged.
    host = "plain"
    kinds = ("outlier-batch",)
    good = 0.02
    pixels = 4000.0
    cure = settings(pixels=1.0)
    cured_by = r"\bclip|huber|smooth"
    shuffle = False
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 25, 32))
        self.boxes = nn.Linear(32, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(640, 1, 11, 11, generator=noise(735))
        boxes = functional.adaptive_avg_pool2d(picture, 2).flatten(1).mul(3).sigmoid()
        boxes[402] = boxes[402] * self.pixels
        return picture, boxes

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = self.boxes(functional.hardswish(self.net(batch[0])))
        return (made - batch[1]).square().sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.8)
