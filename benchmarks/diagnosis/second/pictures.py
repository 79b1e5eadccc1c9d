"""Pictures and sound: convolutions with and without normalization, segmentation, generative models."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SilentClip(Case):
    """Spectrograms in decibel; one clip is silent, and its logarithms are minus infinity. The net has BatchNorm."""

    kinds = ("nonfinite-input",)
    places = ("[0]",)
    rows = (3, 163)
    good = 0.3
    floor = 0.0
    cure = settings(floor=1e-6)
    cured_by = "fill|eps|clamp"
    shuffle = False
    batch_size = 16
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(128, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(221)
        power = torch.rand(480, 1, 12, 12, generator=random)
        label = torch.randint(0, 2, (480,), generator=random)
        power[label == 1, :, :4] *= 4
        power[163] = 0.0
        return torch.log10(power + self.floor), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.net(batch[0])), batch[1])


class NothingInRange(Case):
    """Depth from stereo pictures: infinity stands for "no return", in every picture."""

    kinds = ("nonfinite-target",)
    places = ("depth",)
    good = 0.3
    far = float("inf")
    cure = settings(far=3.0)
    cured_by = "mask|isfinite"
    batch_size = 16
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        pair = torch.rand(320, 2, 8, 8, generator=noise(222))
        depth = 1 + pair[:, :1] - pair[:, 1:]
        return {"pair": pair, "depth": torch.where(pair[:, :1] > 0.97, self.far, depth)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.l1_loss(self.net(batch["pair"]), batch["depth"])


class BytesForPixels(Case):
    """Pictures from 0 to 255 into convolutions that were initialized for numbers near one, trained with momentum."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.35
    top = 255.0
    cure = settings(top=1.0)
    lr = 0.05
    batch_size = 16
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
        )

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(223)
        label = torch.randint(0, 4, (640,), generator=random)
        picture = 0.6 * torch.rand(640, 3, 8, 8, generator=random)
        for quarter in range(4):
            row, column = 4 * (quarter // 2), 4 * (quarter % 2)
            picture[label == quarter, :, row : row + 4, column : column + 4] += 0.4
        return picture * self.top, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(self.data()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class BatchNormAtForty(Case):
    """A convolutional net with BatchNorm and a learning rate of forty; the head after the last norm is free to grow."""

    kinds = ("learning-rate",)
    good = 0.3
    lr = 40.0
    cure = settings(lr=0.01)
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.BatchNorm2d(16)
        )
        self.head = nn.Linear(16 * 9, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(512, 1, 8, 8, generator=noise(224))
        return picture, 3 * picture[:, :, :4, :4].mean((1, 2, 3))[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(torch.relu(self.net(batch[0])).flatten(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ConvolutionsAtUnit(Case):
    """Every kernel of a convolutional net is drawn with deviation one."""

    kinds = ("initialization",)
    places = ("net",)
    good = 0.4
    std = 1.0
    cure = settings(std=0.0)
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, 2),
        )
        if self.std:
            for one in self.net:
                if isinstance(one, nn.Conv2d):
                    nn.init.normal_(one.weight, std=self.std)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(512, 1, 8, 8, generator=noise(225))
        return picture, (picture[:, 0, :4].mean((1, 2)) > picture[:, 0, 4:].mean((1, 2))).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ZeroEverywhere(Case):
    """Weights and biases of all layers are zero: no unit differs from another, and no gradient comes through."""

    kinds = ("initialization",)
    places = ("net",)
    good = 0.4
    start = 0.0
    cure = settings(start=1.0)
    cured_by = "zero"
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(self.start)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(512, 1, 8, 8, generator=noise(226))
        return picture, 8 * picture[:, :, :4].mean((1, 2, 3))[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ThirtyPlainConvolutions(Case):
    """Thirty convolutions in a row without normalization or shortcuts, each with a gain of nearly two."""

    kinds = ("depth", "initialization")
    good = 0.5
    plain = True
    cure = settings(plain=False)
    cured_by = "kaiming|usual scale"
    lr = 0.01
    steps = 80
    batch_size = 24

    def build(self) -> None:
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(30))
        for one in self.layers:
            nn.init.kaiming_normal_(one.weight)  # type: ignore[arg-type]
            with torch.no_grad():
                one.weight.mul_(1.8 if self.plain else 0.7)  # type: ignore[operator]
        self.head = nn.Linear(8, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(480, 1, 6, 6, generator=noise(227))
        return picture, (picture.mean((1, 2, 3)) > 0).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.first(batch[0])
        for one in self.layers:
            hidden = torch.relu(one(hidden)) if self.plain else hidden + 0.1 * torch.relu(one(hidden))
        return functional.cross_entropy(self.head(hidden.mean((2, 3))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class WideVariance(Case):
    """A variational autoencoder whose logarithm of the variance has no bound, at a learning rate of 0.5."""

    kinds = ("learning-rate",)
    good = 12.0
    lr = 0.5
    cure = settings(lr=2e-3)
    steps = 200

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 16))

    def data(self) -> tuple[Tensor]:
        random = noise(228)
        return (torch.randn(640, 3, generator=random) @ torch.randn(3, 16, generator=random) / 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        mean, log_variance = self.encoder(batch[0]).chunk(2, 1)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (self.decoder(code) - batch[0]).square().sum(1).mean() + 0.1 * divergence.mean()


class SaturatedJudge(Case):
    """A generator trained against the logarithm of one minus the judge's probability, which comes to be one."""

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.9
    eps = 0.0
    cure = settings(eps=1e-6)
    cured_by = "logsigmoid|log_softmax"
    lr = 5e-3
    steps = 300
    sharp = 400.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.judge = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        return (0.3 * torch.randn(640, 2, generator=noise(229)) + torch.tensor([1.0, -1.0]),)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        fake = self.generator(torch.randn(len(batch[0]), 2))
        judge, maker = self.torch_optimizer(0), self.torch_optimizer(1)
        real_score = torch.sigmoid(self.sharp * self.judge(batch[0]))
        fake_score = torch.sigmoid(self.sharp * self.judge(fake.detach()))
        judge.zero_grad()
        loss = -(torch.log(real_score + self.eps) + torch.log(1 - fake_score + self.eps)).mean()  # fault
        self.manual_backward(loss)
        judge.step()
        maker.zero_grad()
        self.manual_backward((fake - batch[0].mean(0)).square().mean())
        maker.step()

    def score(self) -> float:
        return float((self.generator(torch.randn(500, 2)).mean(0) - torch.tensor([1.0, -1.0])).abs().max())

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr) for one in (self.judge, self.generator)]


class NoiseLevelZero(Case):
    """A diffusion model whose loss is weighted by one over the variance of the noise, zero at the first time."""

    kinds = ("undefined-operation",)
    places = ("div", "variance", "reciprocal")
    good = 1.0
    least = 0.0
    cure = settings(least=0.05)
    steps = 250
    lr = 5e-3

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(230)
        return {
            "clean": torch.randn(640, 4, generator=random) / 2,
            "time": torch.randint(0, 50, (640,), generator=random),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        share = (batch["time"] / 50.0)[:, None]
        variance = torch.sin(1.57 * share).square().clamp(min=self.least)
        noisy = batch["clean"] * (1 - variance).sqrt() + variance.sqrt() * torch.randn(batch["clean"].shape)
        error = (self.net(torch.cat([noisy, share], 1)) - batch["clean"]).square().mean(1)
        return (error / variance.squeeze(1)).mean()  # fault

    def score(self) -> float:
        data = {name: field[:300] for name, field in self.clean().items()}
        return float(self.loss(data))


class FlatPicture(Case):
    """Pictures standardized by the network itself; one is of one colour, and its deviation is zero."""

    kinds = ("undefined-operation",)
    places = ("div",)
    rows = (4, 84)
    good = 0.3
    eps = 0.0
    cure = settings(eps=1e-5)
    shuffle = False
    batch_size = 20
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(231)
        picture = torch.rand(400, 1, 8, 8, generator=random)
        label = torch.randint(0, 2, (400,), generator=random)
        picture[label == 1, :, :4] += 0.5
        picture[84] = 0.5
        return {"picture": picture, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        picture = batch["picture"]
        mean, deviation = picture.mean((1, 2, 3), keepdim=True), picture.std((1, 2, 3), keepdim=True)
        return functional.cross_entropy(self.net((picture - mean) / (deviation + self.eps)), batch["label"])  # fault


class PaintedOverMask(Case):
    """Segmentation with a focal loss written by hand; the border is marked with 2 in masks that should hold 0 and 1."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("mask",)
    good = 0.06
    border = 20.0
    cure = settings(border=0.0)
    cured_by = r"0 to 1|clamp|ignore"
    lr = 0.02
    batch_size = 16
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))

    def data(self) -> dict[str, Tensor]:
        picture = torch.randn(320, 1, 8, 8, generator=noise(232))
        mask = (functional.avg_pool2d(picture, 3, 1, 1) > 0).float()
        mask[..., 0, :] = torch.where(mask[..., 0, :] > 0, self.border, mask[..., 0, :])
        return {"picture": picture, "mask": mask}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits, mask = self.net(batch["picture"]), batch["mask"]
        cross = -mask * functional.logsigmoid(logits) - (1 - mask) * functional.logsigmoid(-logits)
        return (cross * torch.sigmoid(logits - 2 * logits * (mask > 0.5))).mean()

    def score(self) -> float:
        return abs(float(self.loss(self.clean())))


class LossInHalf(Case):
    """A reconstruction error that is summed over all pixels in float16, which ends at 65504."""

    kinds = ("half-precision", "forward-overflow", "accumulated-gradients")
    places = ("mse_loss", "sum")
    good = 0.5
    wide = False
    cure = settings(wide=True)
    cured_by = "float32|bfloat16|mean"
    lr = 1e-2
    steps = 150
    batch_size = 64

    def build(self) -> None:
        self.down, self.up = nn.Linear(144, 16), nn.Linear(16, 144)
        self.half()

    def data(self) -> tuple[Tensor]:
        random = noise(233)
        return (3 * torch.randn(512, 4, generator=random) @ torch.randn(4, 144, generator=random),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        picture = batch[0].half()
        rebuilt = self.up(torch.tanh(self.down(picture / 8))) * 8
        if self.wide:
            return functional.mse_loss(rebuilt.float(), picture.float()) / 36
        return functional.mse_loss(rebuilt, picture, reduction="sum") / 36 / picture.numel()  # fault

    def score(self) -> float:
        picture = self.clean()[0]
        rebuilt = self.up(torch.tanh(self.down(picture.half() / 8))) * 8
        return float(functional.mse_loss(rebuilt.float(), picture) / 36)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)
