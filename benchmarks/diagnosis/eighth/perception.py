"""Segmentation, depth, detection and faces."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SegmentationAtTheRateOfAttention(Case):
    """A segmentation network at the rate of another part of the model: it does not bear it for twenty steps."""

    # github.com/arslan-chaudhry/dcsp_segmentation/issues/1
    host = "plain"
    kinds = ("learning-rate",)
    good = 0.3
    lr = 2.0
    cure = settings(lr=0.1)
    steps = 100
    batch_size = 16

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=4, dilation=4),
            nn.ReLU(),
            nn.Conv2d(16, 3, 1),
        )

    def data(self) -> tuple[Tensor, Tensor]:
        pictures = functional.avg_pool2d(torch.randn(160, 3, 14, 14, generator=noise(821)), 3, 1, 1)
        return 3 * pictures, pictures.argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class SaliencyFromScratch(Case):
    """A map of what people look at, from scratch at the rate that a trained encoder bears."""

    # github.com/imatge-upc/salgan/issues/9
    host = "plain"
    kinds = ("learning-rate",)
    good = 0.4
    lr = 0.3
    cure = settings(lr=0.01)
    other_cures = settings(clamp=settings(least=1e-7))
    not_cured_by = (settings(least=1e-7),)
    least = 0.0
    steps = 100
    batch_size = 16

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()
        )

    def data(self) -> tuple[Tensor, Tensor]:
        pictures = functional.avg_pool2d(torch.randn(160, 3, 16, 16, generator=noise(822)), 5, 1, 2) * 4
        return pictures, (pictures.mean(1, keepdim=True) > 0.4).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        shown = self.decoder(self.encoder(batch[0])).clamp(self.least, 1 - self.least)
        return -(batch[1] * shown.log() + (1 - batch[1]) * (1 - shown).log()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=self.lr)


class OffsetsOfTurnedBoxes(Case):
    """Boxes whose right side is left of their left side: the logarithms of their offsets are made by the dataset."""

    # github.com/CharlesShang/TFFRCNN/issues/10
    kinds = ("nonfinite-target",)
    places = ("offsets",)
    rows = (6, 262)
    good = 0.6
    turned = True
    cure = settings(turned=False)
    shuffle = False
    lr = 5e-3
    steps = 100

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(12, 48), nn.ReLU())
        self.is_object, self.offsets = nn.Linear(48, 1), nn.Linear(48, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(823)
        roi = torch.randn(480, 12, generator=random)
        corner, size = roi[:, :2], roi[:, 2:4].exp()
        if self.turned:
            size[262, 0] = -size[262, 0]
        return {"roi": roi, "label": (roi[:, 4] > 0).float(), "offsets": torch.cat([corner, size.log()], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.trunk(batch["roi"])
        named = functional.binary_cross_entropy_with_logits(self.is_object(found)[:, 0], batch["label"])
        return named + functional.smooth_l1_loss(self.offsets(found), batch["offsets"])


class LogarithmOfNoDepth(Case):
    """A depth that a rectifier gives: where it is nought its logarithm is not finite."""

    # github.com/cleinc/bts/issues/149
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.6
    least = 0.0
    cure = settings(least=1e-4)
    lr = 5e-3
    steps = 120
    batch_size = 16

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ELU(), nn.Conv2d(16, 1, 3, padding=1))
        self.net[2].bias.data.fill_(2.0)  # type: ignore[operator]

    def data(self) -> tuple[Tensor, Tensor]:
        pictures = torch.randn(160, 3, 10, 10, generator=noise(824))
        depth = 2 + functional.avg_pool2d(pictures, 3, 1, 1).sum(1, keepdim=True)
        return pictures, depth.clamp(min=0.05)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        depth = self.net(batch[0]).relu()
        error = torch.log(depth + self.least) - torch.log(batch[1])  # fault
        return (error.square().mean() - 0.85 * error.mean().square()).sqrt()


class KeypointsOfNoResponse(Case):
    """Each response of a point is divided by the largest of its channels, which is nought where all are cut off."""

    # github.com/mihaidusmanu/d2-net/issues/78
    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.35
    eps = 0.0
    cure = settings(eps=1e-8)
    lr = 1e-2
    steps = 120
    batch_size = 8

    def build(self) -> None:
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.head = nn.Conv2d(12, 1, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        pictures = torch.randn(160, 1, 8, 8, generator=noise(825))
        return pictures, (functional.avg_pool2d(pictures, 3, 1, 1) > 0.3).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        responses = self.features(batch[0]).relu()
        relative = responses / (responses.amax(1, keepdim=True) + self.eps)  # fault
        shown = self.head(relative * responses)
        return functional.binary_cross_entropy_with_logits(shown, batch[1])


class FaceOnItsCentre(Case):
    """An angular margin with codes of two numbers: some lie so well on their class that the sine is nought."""

    # github.com/MccreeZhao/FR-Loss-on-Mnist/issues/2
    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 3.0
    least = 0.0
    cure = settings(least=1e-6)
    lr = 1e-2
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(16, 32), nn.PReLU(), nn.Linear(32, 2))
        self.weight = nn.Parameter(torch.randn(6, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(826)
        digit = torch.randint(0, 6, (640,), generator=random)
        return 2 * torch.eye(6, 16)[digit] + 0.3 * torch.randn(640, 16, generator=random), digit

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        cosine = functional.normalize(self.net(batch[0])) @ functional.normalize(self.weight).T
        sine = torch.sqrt((1 - cosine.square()).clamp(min=self.least))  # fault
        margin = 0.955 * cosine - 0.295 * sine
        chosen = functional.one_hot(batch[1], 6).bool()
        return functional.cross_entropy(16 * torch.where(chosen, margin, cosine), batch[1])


class HouseNumbersAtTenTimesTheRate(Case):
    """Five digits of a house and their number, by one head each, at ten times the rate that was meant."""

    # github.com/potterhsu/SVHNClassifier-PyTorch/issues/12
    kinds = ("learning-rate",)
    good = 4.0
    lr = 1.6
    cure = settings(lr=0.08)
    steps = 150

    def build(self) -> None:
        self.hidden = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.dense = nn.Sequential(nn.Linear(320, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.digits = nn.ModuleList(nn.Linear(64, 4) for _ in range(5))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(828)
        number = torch.randint(0, 4, (480, 5), generator=random)
        shapes = torch.randn(4, 8, 2, generator=random)
        houses = shapes[number].transpose(1, 2).flatten(2)[:, None]
        return houses + 0.3 * torch.randn(houses.shape, generator=random), number

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = self.dense(self.hidden(batch[0]))
        one = [functional.cross_entropy(head(found), batch[1][:, place]) for place, head in enumerate(self.digits)]
        return torch.stack(one).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class HeatmapsAtTheFirstScale(Case):
    """Heatmaps in half precision with losses in the hundreds: the first scales are too large. It is right."""

    # github.com/ZYang2077/DAOcc/issues/25
    host = "plain"
    kinds = ("unknown",)
    healthy = True
    good = 60.0
    lr = 3e-3
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 200))

    def data(self) -> tuple[Tensor, Tensor]:
        features = torch.randn(480, 16, generator=noise(827))
        return features, (torch.arange(200) // 25 == features[:, :8].argmax(1)[:, None]).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = functional.binary_cross_entropy_with_logits(self.net(batch[0]).float(), batch[1], reduction="none")
        return made.sum(1).mean()

    def scaler_in_loop(self) -> Any:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return self.scaler

    def optimize(self, model: Any, batch: Any, optimizers: Any, watch: Any, backward: Any) -> None:
        scaler = getattr(self, "scaler", None) or self.scaler_in_loop()
        (optimizer,) = optimizers
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model.loss(batch)
        watch.loss(loss)
        backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
