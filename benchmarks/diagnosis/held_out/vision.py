"""Pictures: scanned digits, depth maps, microscope scans, segments."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 scanned digits of 8 by 8 pixels from 0 to 1, and the digit, in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=noise(100))
    return torch.tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)[order], torch.tensor(labels)[order]


class CorruptPixel(Case):
    """A decoder returned infinity for one pixel of one picture."""

    kinds = ("nonfinite-input",)
    places = ("pixels",)
    rows = (17, 967)
    good = 0.6
    corrupt = True
    cure = settings(corrupt=False)
    shuffle = False
    batch_size = 50
    lr = 3e-3

    def build(self) -> None:
        self.stem = nn.Sequential(nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2))
        self.classify = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(90, 10))

    def data(self) -> dict[str, Tensor]:
        pixels, label = digits()
        pixels = pixels.clone()
        if self.corrupt:
            pixels[967, 0, 4, 2] = float("inf")
        return {"pixels": pixels, "digit": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.classify(self.stem(batch["pixels"])), batch["digit"])


class DepthOfTheSky(Case):
    """The depth of the sky is stored as infinity, and some pictures show sky."""

    kinds = ("nonfinite-target",)
    places = ("depth",)
    rows = (9, 153)
    good = 0.35
    sky = float("inf")
    cure = settings(sky=3.0)
    batch_size = 16
    shuffle = False

    def build(self) -> None:
        self.down = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1)

    def data(self) -> dict[str, Tensor]:
        picture = torch.rand(480, 3, 8, 8, generator=noise(101))
        depth = 1 + picture.mean(1, keepdim=True) + picture[:, :1]
        depth[153, :, :3] = self.sky
        return {"picture": picture, "depth": depth}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.up(functional.elu(self.down(batch["picture"]))) - batch["depth"]).abs().mean()


class SixteenBitScan(Case):
    """Microscope scans with 16 bits a pixel go into a network unscaled."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.4
    white = 65_535.0
    cure = settings(white=1.0)
    lr = 0.1

    def build(self) -> None:
        self.stage1 = nn.Conv2d(1, 8, 3)
        self.stage2 = nn.Conv2d(8, 16, 3)
        self.cells = nn.Linear(16, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(102)
        label = torch.randint(0, 2, (400,), generator=random)
        scan = torch.rand(400, 1, 10, 10, generator=random) * (0.35 + 0.5 * label[:, None, None, None])
        return (scan * self.white).round() if self.white > 1 else scan, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.stage2(self.stage1(batch[0]).relu()).relu()
        return functional.cross_entropy(self.cells(hidden.mean((2, 3))), batch[1])

    def score(self) -> float:
        return float(self.loss(self.data()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SpreadOfAClass(Case):
    """A loss on the spread of each class's embeddings, and classes with one picture in the batch."""

    kinds = ("empty-reduction",)
    places = ("std", "var", "spread")
    good = 1.2
    correction = 1
    cure = settings(correction=0)
    cured_by = "one (?:sample|element|row)|two (?:samples|elements|rows)|single"
    batch_size = 24
    lr = 5e-3

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU())
        self.classify = nn.Linear(40, 10)

    def data(self) -> tuple[Tensor, Tensor]:
        return digits()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors, label = self.embed(batch[0]), batch[1]
        spread = [
            vectors[label == one].std(0, correction=self.correction).clamp(min=1e-3).mean()  # fault
            for one in range(10)
            if (label == one).any()
        ]
        return functional.cross_entropy(self.classify(vectors), label) + 0.1 * torch.stack(spread).mean()

    def score(self) -> float:
        pixels, label = self.clean()
        return float(functional.cross_entropy(self.classify(self.embed(pixels)), label))


class BatchOfRawBytes(Case):
    """One batch was not divided by 255, in the middle of an epoch of an autoencoder."""

    kinds = ("outlier-batch",)
    places = ("batch", "[0]")
    good = 0.06
    raw = 255.0
    cure = settings(raw=1.0)
    shuffle = False
    batch_size = 29
    steps = 100
    lr = 0.3

    def build(self) -> None:
        self.encode = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.1))
        self.decode = nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def data(self) -> tuple[Tensor]:
        pixels = digits()[0].clone()
        pixels[1160:1189] *= self.raw
        return (pixels,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        return functional.mse_loss(self.decode(self.encode(batch[0])), batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PowerPooling(Case):
    """Generalized-mean pooling with a learned exponent, of features that can be negative."""

    kinds = ("undefined-operation",)
    places = ("pow", "exponent")
    good = 1.6
    least = -1e9
    cure = settings(least=1e-4)
    cured_by = "relu|abs|positive"
    lr = 5e-3

    def build(self) -> None:
        self.features = nn.Conv2d(1, 24, 3)
        self.exponent = nn.Parameter(torch.tensor(2.5))
        self.classify = nn.Linear(24, 10)
        nn.init.constant_(self.features.bias, 0.5)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        return digits()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        maps = self.features(batch[0]).clamp(min=self.least)
        pooled = maps.pow(self.exponent).mean((2, 3)).pow(1 / self.exponent)  # fault
        return functional.cross_entropy(self.classify(4 * pooled), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr * 4)


class TenfoldGain(Case):
    """Convolutions drawn with Xavier's rule and a gain of 10."""

    kinds = ("initialization",)
    places = ("body",)
    good = 0.7
    gain = 10.0
    cure = settings(gain=1.0)
    lr = 0.05

    def build(self) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()
        )
        self.classify = nn.Linear(48, 10)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, gain=self.gain)

    def data(self) -> tuple[Tensor, Tensor]:
        return digits()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.classify(self.body(batch[0]).flatten(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class RootMeanSquareTooFast(Case):
    """A small convolutional network with RMSprop at 0.3."""

    kinds = ("learning-rate",)
    good = 0.6
    lr = 0.3
    cure = settings(lr=3e-3)
    batch_size = 60

    def build(self) -> None:
        self.conv = nn.Conv2d(1, 16, 3)
        self.norm = nn.GroupNorm(4, 16)
        self.classify = nn.Linear(16 * 9, 10)

    def data(self) -> tuple[Tensor, Tensor]:
        return digits()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        maps = functional.max_pool2d(functional.gelu(self.norm(self.conv(batch[0]))), 2)
        return functional.cross_entropy(self.classify(maps.flatten(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class LogitsAsProbabilities(Case):
    """Distillation with the teacher's logits in place of its probabilities: negative weights in a cross-entropy."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("teacher",)
    good = 1.0
    softmax = False
    cure = settings(softmax=True)
    cured_by = "softmax|probabilit"
    lr = 0.02

    def build(self) -> None:
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def data(self) -> dict[str, Tensor]:
        pixels, label = digits()
        logits = 4 * functional.one_hot(label, 10) - 3 + torch.randn(len(label), 10, generator=noise(103))
        return {"image": pixels, "teacher": logits.softmax(1) if self.softmax else logits}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.student(batch["image"]), batch["teacher"])

    def score(self) -> float:
        pixels, label = digits()
        return float(functional.cross_entropy(self.student(pixels), label))


class UnfrozenBackbone(Case):
    """A backbone is frozen for eighty steps, and joins the optimizer with a rate of its own that is far too high."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.7
    backbone_lr = 5.0
    cure = settings(backbone_lr=0.01)
    cured_by = "backbone"
    steps = 160
    lr = 0.1

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.backbone.requires_grad_(False)

    def data(self) -> tuple[Tensor, Tensor]:
        return digits()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 80 and self.backbone_lr > 0:
            self.backbone.requires_grad_(True)
            self.torch_optimizer().param_groups[1]["lr"] = self.backbone_lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: Iterable[dict[str, Any]] = [
            {"params": self.head.parameters()},
            {"params": self.backbone.parameters(), "lr": 0.0},
        ]
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
