"""Pictures and videos, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def faces(count: int, seed: int, spread: float) -> dict[str, Tensor]:
    """Return noisy pictures of eight persons, and the number of the person."""
    generator = noise(seed)
    persons = torch.randn(8, 64, generator=generator)
    labels = torch.randint(8, (count,), generator=generator)
    return {"images": persons[labels] + spread * torch.randn(count, 64, generator=generator), "labels": labels}


class TripletsOnOnePoint(Case):
    """Embeddings of pictures by the hardest triplets of a batch: the loss is stuck at the margin.

    Report: github.com/omoindrot/tensorflow-triplet-loss/issues/51. Found by a reader: a lower rate, with which the loss
    stays at the margin for a while and goes down then.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.2
    lr = 0.03
    cure = settings(lr=1e-3)
    batch_size = 32
    steps = 300

    def build(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        )
        self.embeddings = nn.Linear(64, 16)

    def data(self) -> dict[str, Tensor]:
        return faces(960, 23401, 1.5)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        embeddings, labels = self.embeddings(self.model(batch["images"])), batch["labels"]
        dot = embeddings @ embeddings.T
        norm = dot.diagonal()
        squared = (norm[None] - 2 * dot + norm[:, None]).clamp(min=0)
        is_zero = (squared == 0).float()
        pairwise_dist = (squared + is_zero * 1e-16).sqrt() * (1 - is_zero)
        same = labels[None] == labels[:, None]
        hardest_positive = torch.where(same, pairwise_dist, 0.0).amax(1)
        hardest_negative = torch.where(same, pairwise_dist.max(), pairwise_dist).amin(1)
        return (hardest_positive - hardest_negative + 0.5).relu().mean()


class VideosFromScratch(Case):
    """Actions in short videos, from scratch: the loss is that of a guess, and does not decrease.

    Report: github.com/facebookarchive/C3D/issues/85. Solved by the reporter: a smaller base rate.
    """

    kinds = ("learning-rate",)
    good = 0.5
    lr = 0.3
    cure = settings(lr=0.01)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        self.features = nn.Sequential(
            nn.Conv3d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Flatten(),
        )
        self.fc6, self.fc8 = nn.Linear(32 * 2 * 2 * 2, 64), nn.Linear(64, 8)

    def data(self) -> dict[str, Tensor]:
        generator = noise(23403)
        label = torch.randint(8, (480,), generator=generator)
        angle = (label * torch.pi / 4)[:, None, None, None]
        frame = torch.arange(4.0)[:, None, None]
        y, x = torch.arange(8.0)[:, None] - 3.5, torch.arange(8.0) - 3.5
        distance = (x - (frame - 1.5) * 2 * angle.cos()).square() + (y - (frame - 1.5) * 2 * angle.sin()).square()
        clip = 2 * (-distance / 2).exp() + 0.1 * torch.randn(480, 4, 8, 8, generator=generator)
        return {"clip": clip[:, None], "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.fc8(self.fc6(self.features(batch["clip"])).relu()), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class VesselsOfTheRetina(Case):
    """Vessels of the retina, with the code as it was published: a loss of 1e18 in the fourth epoch.

    Report: github.com/juntang-zhuang/LadderNet/issues/1. Solved by the author: a wrong version was uploaded, the rate
    was a smaller one.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.3
    lr = 0.3
    cure = settings(lr=3e-3)
    batch_size = 8
    steps = 300

    def build(self) -> None:
        self.inconv, self.down = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(3))
        self.up, self.final = nn.ConvTranspose2d(24, 12, 2, stride=2), nn.Conv2d(12, 2, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(23404)
        y, x = torch.arange(16.0)[:, None], torch.arange(16.0)
        shape = (240, 1, 1)
        slope = torch.randn(shape, generator=generator)
        offset, bend = 16 * torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        vessel = (y - offset - slope * (x - 8) - 2 * (bend * x).sin()).abs() < 1.5
        image = 0.5 - 0.3 * vessel.float() + 0.05 * torch.randn(240, 16, 16, generator=generator)
        return {"image": image[:, None], "vessel": vessel.long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first = self.inconv(batch["image"]).relu()
        x = self.down(first).relu()
        for layer in self.middle:
            x = x + layer(x).relu()
        return functional.cross_entropy(self.final(first + self.up(x)), batch["vessel"])


class PowersOfTwo(Case):
    """A trained classifier whose weights are limited to powers of two: the accuracy drops quickly.

    Report: github.com/yhhhli/APoT_Quantization/issues/6. Found by the reporter: a smaller rate, for the size of the
    batch. The thresholds of the weights are trained too.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.6
    lr = 1.0
    cure = settings(lr=0.01)
    batch_size = 64
    steps = 300

    def build(self) -> None:
        trained = self.trained()
        self.weights = nn.ParameterList(nn.Parameter(weight.clone()) for weight in trained)
        self.alphas = nn.ParameterList(nn.Parameter(3 * weight.std()) for weight in trained)

    def trained(self) -> list[Tensor]:
        generator = noise(23405)
        return [
            torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5
            for inputs, outputs in ((24, 96), (96, 96), (96, 10))
        ]

    def data(self) -> dict[str, Tensor]:
        images = torch.randn(1280, 24, generator=noise(23406))
        first, second, third = self.trained()
        return {"images": images, "target": ((images @ first.T).relu() @ second.T).relu().matmul(third.T).argmax(1)}

    def quantized(self, index: int) -> Tensor:
        scaled = (self.weights[index] / self.alphas[index]).clamp(-1, 1)
        levels = 2.0 ** scaled.abs().clamp(min=1e-8).log2().round().clamp(-7, 0) * (scaled.abs() > 2**-8)
        return self.alphas[index] * (scaled + (levels * scaled.sign() - scaled).detach())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = (batch["images"] @ self.quantized(0).T).relu()
        logits = (x @ self.quantized(1).T).relu() @ self.quantized(2).T
        return functional.cross_entropy(logits, batch["target"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
