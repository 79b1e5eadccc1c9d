"""Pictures: decoding, likelihoods of pixels, normalization written by hand, deep networks."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class BlackFrame(Case):
    """Frames divided by their brightest pixel; one frame of a video is black, and becomes 0/0."""

    kinds = ("nonfinite-input",)
    places = ("frame",)
    rows = (9, 409)
    good = 0.5
    darkest = 0.0
    cure = settings(darkest=1e-6)
    shuffle = False
    batch_size = 20
    lr = 0.01
    steps = 120

    def build(self) -> None:
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(341)
        frame = torch.rand(500, 1, 8, 8, generator=random)
        label = torch.randint(0, 2, (500,), generator=random)
        frame[label == 1] = frame[label == 1].sqrt()
        frame[409] = 0.0
        return {"frame": frame / frame.amax((1, 2, 3), keepdim=True).clamp(min=self.darkest), "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(torch.relu(self.conv(batch["frame"])).mean((2, 3))), batch["label"])


class HiddenKeypoints(Case):
    """Places of joints in a picture, NaN for joints that are hidden, in every batch."""

    kinds = ("nonfinite-target",)
    places = ("joints",)
    good = 0.5
    missing = float("nan")
    cure = settings(missing=0.0)
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(342)
        image = torch.randn(480, 1, 8, 8, generator=random)
        joints = torch.stack([image[:, 0, 1, 1], image[:, 0, 2, 5], image[:, 0, 6, 3], image[:, 0, 4, 4]], 1)
        joints[torch.rand(480, 4, generator=random) < 0.05] = self.missing
        return {"image": image, "joints": joints}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["image"]), batch["joints"])


class StandardizedPixels(Case):
    """An autoencoder with a cross-entropy of pixels, which were standardized: they range from -0.4 to 2.8."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("picture", "batch", "[0]")
    good = 0.6
    standardized = True
    cure = settings(standardized=False)
    cured_by = "range|0 to 1|clamp"
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(16, 64)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(343)
        code = torch.randn(512, 4, generator=random)
        pixels = torch.sigmoid(4 * code @ torch.randn(4, 64, generator=random) - 2)
        return (pixels - 0.1307) / 0.3081 if self.standardized else pixels, torch.zeros(512)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        picture = batch[0]
        return functional.binary_cross_entropy_with_logits(self.decoder(torch.relu(self.encoder(picture))), picture)


class DeviationOfTheBatch(Case):
    """A discriminator that takes the deviation within the batch as a feature; the last batch has one picture."""

    kinds = ("empty-reduction",)
    places = ("std",)
    good = 0.45
    correction = 1
    cure = settings(correction=0)
    cured_by = "correction=0|unbiased"
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.features, self.head = nn.Linear(36, 24), nn.Linear(25, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(344)
        picture = torch.randn(641, 36, generator=random)
        real = (torch.rand(641, generator=random) > 0.5).float()
        return picture + 0.5 * real[:, None], real

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.relu(self.features(batch[0]))
        spread = hidden.std(0, correction=self.correction).mean()  # fault
        logit = self.head(torch.cat([hidden, spread.expand(len(hidden), 1)], 1)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logit, batch[1])


class OverexposedScan(GradientDescent, Case):
    """One scan of a study was stored in other units: all its voxels are a million times the others'."""

    kinds = ("outlier-batch",)
    places = ("scan",)
    good = 0.4
    unit = 1e6
    cure = settings(unit=1.0)
    shuffle = False
    lr = 0.1
    steps = 110

    def build(self) -> None:
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 1)

    def data(self) -> dict[str, Tensor]:
        scan = torch.rand(1760, 1, 6, 6, generator=noise(345))
        volume = 4 * (scan.mean((1, 2, 3)) - 0.5)[:, None]
        scan[1111] *= self.unit
        return {"scan": scan, "volume": volume}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(torch.relu(self.conv(batch["scan"])).mean((2, 3))), batch["volume"])


class GammaOfBlack(Case):
    """A gamma correction within a condition: where(x > 0, x ** gamma, 0); its slope at zero is infinite."""

    kinds = ("undefined-operation",)
    places = ("pow", "where")
    good = 0.6
    safe = False
    cure = settings(safe=True)
    cured_by = "inner|safe|clamp|keep the"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.expose = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        pixels = torch.rand(512, 16, generator=noise(346))
        target = 3 * (pixels[:, :1] - pixels[:, 1:2])
        pixels[torch.rand(512, 16, generator=noise(356)) < 0.002] = 0.0
        return pixels, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        light = batch[0] * self.expose.abs()
        base = torch.where(light > 0, light, torch.ones_like(light)) if self.safe else light
        corrected = torch.where(light > 0, base**0.45, torch.zeros_like(light))  # fault
        return functional.mse_loss(self.head(corrected), batch[1])


class DeviationOfABlank(Case):
    """A layer normalization by hand, with an epsilon outside of the root: a blank patch has no slope there."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.4
    eps = 0.0
    cure = settings(eps=1e-5)
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.inside, self.out = nn.Linear(9, 6, bias=False), nn.Linear(6, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        patch = torch.randn(512, 9, generator=noise(347))
        label = (patch[:, 0] + patch[:, 1] > 0).long()
        patch[torch.rand(512, generator=noise(357)) < 0.01] = 0.0
        return patch, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.inside(batch[0])
        hidden = hidden - hidden.mean(1, keepdim=True)
        spread = torch.sqrt(hidden.square().mean(1, keepdim=True) + self.eps) + 1e-5  # fault
        return functional.cross_entropy(self.out(hidden / spread), batch[1])


class ResidualAtThree(GradientDescent, Case):
    """A residual convolutional net without normalization, gradient descent with momentum and a rate of three."""

    kinds = ("learning-rate",)
    good = 0.5
    momentum = 0.9
    lr = 3.0
    cure = settings(lr=0.01)
    steps = 120

    def build(self) -> None:
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(12, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(348)
        label = torch.randint(0, 4, (480,), generator=random)
        image = torch.randn(480, 3, 8, 8, generator=random)
        image[:, 0] += label[:, None, None] - 1.5
        return image, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.stem(batch[0])
        for block in self.blocks:
            hidden = hidden + torch.relu(block(hidden))
        return functional.cross_entropy(self.head(hidden.mean((2, 3))), batch[1])


class GrowingExponentially(Case):
    """An exponential schedule with gamma=1.08 for 0.98: the rate doubles every nine steps."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.4
    gamma = 1.08
    cure = settings(gamma=0.98)
    cured_by = r"gamma|schedule|peak"
    lr = 0.02
    steps = 180

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 1)
        )

    def data(self) -> tuple[Tensor, Tensor]:
        image = torch.randn(480, 1, 8, 8, generator=noise(349))
        return image, 2 * image[:, 0, 3:5, 3:5].mean((1, 2))[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class UnfrozenAtFullRate(Case):
    """A backbone is unfrozen after sixty steps, in a group with the learning rate of ten."""

    kinds = ("learning-rate-jump",)
    good = 0.5
    rate = 10.0
    cure = settings(rate=0.01)
    cured_by = "schedule|peak|group"
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 24, generator=noise(350))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self.global_step == 60:
            self.trainer.optimizers[0].param_groups[1]["lr"] = self.rate

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": self.head.parameters()},
            {"params": self.backbone.parameters(), "lr": 0.0},
        ]
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)


class SumOverPixels(GradientDescent, Case):
    """The squared error is summed over the pixels of each picture and divided by the number of pictures only."""

    kinds = ("accumulated-gradients", "learning-rate")
    good = 0.3
    per_pixel = False
    cure = settings(per_pixel=True)
    cured_by = "mean|averag|divid"
    lr = 0.2
    steps = 200

    def build(self) -> None:
        self.down, self.up = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        noisy = torch.randn(320, 1, 12, 12, generator=noise(351))
        return {"noisy": noisy, "smooth": 2 * functional.avg_pool2d(noisy, 3, 1, 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        error = (self.up(torch.relu(self.down(batch["noisy"]))) - batch["smooth"]).square()
        return error.mean() if self.per_pixel else error.sum() / len(error)

    def score(self) -> float:
        batch = self.clean()
        return float((self.up(torch.relu(self.down(batch["noisy"]))) - batch["smooth"]).square().mean())


class DeepTanhSummed(GradientDescent, Case):
    """A tanh network of ten layers whose loss is summed over the batch, with the rate of a mean."""

    kinds = ("accumulated-gradients",)
    good = 0.4
    reduction = "sum"
    cure = settings(reduction="mean")
    cured_by = "mean|averag|divid"
    lr = 0.1
    batch_size = 64
    steps = 250

    def build(self) -> None:
        layers: list[nn.Module] = []
        for _ in range(9):
            layers += [nn.Linear(32, 32), nn.Tanh()]
            nn.init.xavier_normal_(layers[-2].weight, 1.3)  # type: ignore[arg-type]
        self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), *layers, nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        image = torch.randn(640, 64, generator=noise(352))
        return image, 1.5 * image[:, :8].sum(1, keepdim=True).tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1], reduction=self.reduction)

    def score(self) -> float:
        batch = self.clean()
        return float(functional.mse_loss(self.net(batch[0]), batch[1])) / 3


class PositiveWeights(GradientDescent, Case):
    """A network written with matrices of torch.rand: every weight lies between zero and one."""

    kinds = ("initialization",)
    places = ("first", "second", "third")
    good = 0.4
    scale = 1.0
    cure = settings(scale=0.0)
    cured_by = "randn|centred|xavier|kaiming"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        def matrix(inside: int, outside: int) -> nn.Parameter:
            if self.scale:
                return nn.Parameter(torch.rand(inside, outside) * self.scale)
            return nn.Parameter(torch.randn(inside, outside) / inside**0.5)

        self.first, self.second, self.third = matrix(64, 96), matrix(96, 96), matrix(96, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        image = torch.randn(640, 64, generator=noise(353))
        return image, image[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.relu(batch[0] @ self.first)
        return functional.cross_entropy(torch.relu(hidden @ self.second) @ self.third, batch[1])


class ChaoticTanh(GradientDescent, Case):
    """Twenty-five tanh layers with a gain of three: the outputs stay bounded, and the gradients grow on their way."""

    kinds = ("depth", "initialization")
    good = 0.5
    gain = 3.0
    shortcut = False
    cure = settings(gain=1.0, shortcut=True)
    other_cures = settings(**{"usual scale|orthogonal|keep the scale": settings(gain=1.0)})
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.inside, self.out = nn.Linear(16, 64), nn.Linear(64, 1)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(25))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight, self.gain)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 16, generator=noise(354))
        return inputs, inputs[:, :2].sum(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.inside(batch[0])
        for layer in self.layers:
            branch = torch.tanh(layer(hidden))
            hidden = hidden + 0.1 * branch if self.shortcut else branch
        return functional.mse_loss(self.out(hidden), batch[1])


class SixteenBitSound(GradientDescent, Case):
    """Sound as it is stored, numbers up to 32,767, into a convolution over time."""

    kinds = ("unscaled-data",)
    places = ("wave",)
    good = 0.4
    full = 12000.0
    cure = settings(full=1.0)
    lr = 0.02
    momentum = 0.9
    steps = 150

    def build(self) -> None:
        self.conv, self.head = nn.Conv1d(1, 12, 7, stride=2), nn.Linear(12, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(355)
        label = torch.randint(0, 2, (480,), generator=random)
        wave = torch.sin(torch.arange(40) * (0.4 + 0.8 * label[:, None]) + 6 * torch.rand(480, 1, generator=random))
        return {"wave": (self.full * wave)[:, None], "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(torch.relu(self.conv(batch["wave"])).mean(2)), batch["label"])

    def score(self) -> float:
        return float(self.loss(self.data()))
