"""Data at fault: values that are not finite, targets out of range, missing scaling, outliers."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class FlatWindow(Case):
    """Windows of a signal, each standardized by its own deviation; one is flat and becomes 0/0."""

    kinds = ("nonfinite-input",)
    places = ("window", "[window]")
    rows = (5, 77)
    good = 0.45
    eps = 0.0
    cure = settings(eps=1e-6)
    other_cures = settings(**{"remove|drop|filter|exclude|without": settings(eps=1e-6)})
    shuffle = False
    batch_size = 12

    def build(self) -> None:
        self.features = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 5, 2), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 12, 2)

    def data(self) -> dict[str, Tensor]:
        random, time = noise(1), torch.arange(32.0)
        label = torch.randint(0, 2, (440,), generator=random)
        phase = 6.28 * torch.rand(440, 1, generator=random)
        window = (
            5 + torch.sin(time * (0.3 + 0.5 * label[:, None]) + phase) + 0.3 * torch.randn(440, 32, generator=random)
        )
        window[77] = 5.0
        window = (window - window.mean(1, keepdim=True)) / (window.std(1, keepdim=True) + self.eps)
        return {"window": window[:, None], "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.features(batch["window"])), batch["label"])


class LogOfNoVisits(Case):
    """A table with the logarithm of a count as a column; eleven customers never visited: minus infinity."""

    kinds = ("nonfinite-input",)
    places = ("[0]",)
    rows = tuple(range(29, 600, 53))
    good = 0.4
    offset = 0.0
    cure = settings(offset=1.0)
    cured_by = "log1p"
    shuffle = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(2)
        table = torch.randn(600, 6, generator=random)
        visits = torch.randint(1, 40, (600,), generator=random).float()
        visits[torch.tensor(self.rows)] = 0.0
        table[:, 3] = torch.log(visits + self.offset)
        bought = (table[:, 0] - table[:, 1] + 0.5 * torch.log(visits + 1) > 1).float()
        return table, bought[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])


class MissingAges(Case):
    """Missing values of a table were read as NaN and never filled."""

    kinds = ("nonfinite-input",)
    places = ("[0]",)
    good = 0.3
    fill = float("nan")
    cure = settings(fill=0.0)
    cured_by = "fill|impute"
    lr = 0.05

    def build(self) -> None:
        self.hidden, self.out = nn.Linear(9, 24), nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(3)
        table = torch.randn(512, 9, generator=random)
        target = (table[:, :3].sum(1) + table[:, 5] * table[:, 6])[:, None] / 2
        table[torch.rand(512, generator=random) < 0.04, 8] = self.fill
        return table, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(torch.tanh(self.hidden(batch[0]))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class UnlabelledOutputs(Case):
    """Several outputs to learn, and the measurements of some of them are missing."""

    kinds = ("nonfinite-target",)
    places = ("assay",)
    rows = (14, 45)
    good = 0.35
    missing = True
    cure = settings(missing=False)
    batch_size = 31
    shuffle = False
    cured_by = "mask|isfinite|isnan"

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(20, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.head = nn.Linear(64, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(4)
        molecule = torch.randn(465, 20, generator=random)
        assay = torch.tanh(molecule[:, :4] - molecule[:, 4:8]) + 0.1 * torch.randn(465, 4, generator=random)
        if self.missing:
            assay[45, 2] = float("nan")
        return {"molecule": molecule, "assay": assay}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.smooth_l1_loss(self.head(self.trunk(batch["molecule"])), batch["assay"])


class LogOfNoSales(Case):
    """The target is the logarithm of a day's sales, and on some days nothing was sold."""

    kinds = ("nonfinite-target",)
    places = ("[1]",)
    good = 0.3
    offset = 0.0
    cure = settings(offset=1.0)
    cured_by = "log1p"
    lr = 0.02

    def build(self) -> None:
        self.weekday = nn.Embedding(7, 8)
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(5)
        day = torch.randint(0, 7, (400,), generator=random)
        weather = torch.randn(400, 2, generator=random)
        sales = torch.poisson(torch.exp(0.8 + 0.2 * day + 0.4 * weather[:, 0]), generator=random)
        return weather, torch.log(sales + self.offset)[:, None], day

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        weather, target, day = batch
        return functional.mse_loss(self.net(torch.cat([weather, self.weekday(day)], 1)), target)


class SignsAsLabels(Case):
    """Labels of -1 and 1 for a binary cross-entropy that takes 0 and 1: it falls for ever."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("[1]",)
    good = 0.35
    zero = -1.0
    cure = settings(zero=0.0)
    lr = 0.1

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(6)
        inputs = torch.randn(640, 12, generator=random)
        positive = inputs[:, :1] + 0.5 * inputs[:, 1:2] > 0
        return inputs, torch.where(positive, 1.0, self.zero)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class PercentAsProbability(Case):
    """Cloud cover in percent as the target of a segmentation net that is trained with cross-entropy of a sigmoid."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("cover",)
    good = 0.65
    scale = 100.0
    cure = settings(scale=1.0)
    batch_size = 16

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.cover = nn.Conv2d(12, 1, 1)

    def data(self) -> dict[str, Tensor]:
        image = torch.randn(256, 1, 10, 10, generator=noise(7))
        return {"image": image, "cover": torch.sigmoid(3 * functional.avg_pool2d(image, 3, 1, 1)) * self.scale}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.cover(functional.relu(self.encoder(batch["image"])))
        return functional.binary_cross_entropy_with_logits(logits, batch["cover"])


class TranscriptTooLong(Case):
    """A transcript with more letters than the clip has frames, for connectionist temporal classification."""

    kinds = ("target-out-of-range",)
    places = ("ctc_loss", "_ctc_loss", "length", "transcript")
    rows = (3, 99)
    good = 1.5
    longest = 20
    cure = settings(longest=4)
    cured_by = "zero_infinity|longer|filter"
    shuffle = False
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.rnn = nn.GRU(6, 32, batch_first=True, bidirectional=True)
        self.letters = nn.Linear(64, 6)

    def data(self) -> dict[str, Tensor]:
        random = noise(8)
        transcript = torch.randint(1, 6, (320, 20), generator=random)
        length = torch.full((320,), 4)
        length[99] = self.longest
        audio = 0.3 * torch.randn(320, 12, 6, generator=random)
        spoken = transcript[:, :4].repeat_interleave(3, 1)
        return {"audio": audio + functional.one_hot(spoken, 6), "transcript": transcript, "length": length}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        scores = self.letters(self.rnn(batch["audio"])[0]).log_softmax(-1).transpose(0, 1)
        frames = torch.full((scores.shape[1],), scores.shape[0])
        return functional.ctc_loss(scores, batch["transcript"], frames, batch["length"])  # fault


class HousePrices(Case):
    """Prices near 300,000 as targets of a network whose outputs begin near zero."""

    kinds = ("unscaled-data",)
    places = ("[1]",)
    good = 0.3
    scale, shift = 1e5, 3e5
    cure = settings(scale=1.0, shift=0.0)
    lr = 0.01

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        house = torch.randn(800, 8, generator=noise(9))
        price = 0.6 * house[:, 0] + 0.5 * house[:, 1] * (house[:, 2] > 0) - 0.4 * house[:, 3]
        return house, (price[:, None] * self.scale + self.shift)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def score(self) -> float:
        house, price = self.data()
        return float(functional.mse_loss(self.net(house), price) / price.var())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class UnixTimes(Case):
    """One column of a table is a time in seconds since 1970."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.45
    raw = True
    cure = settings(raw=False)
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(10)
        table = torch.randn(600, 5, generator=random)
        clicked = (table[:, 0] + table[:, 1] + 0.7 * table[:, 4] > 0).long()
        if self.raw:
            table[:, 4] = 1.7e9 + 1e6 * table[:, 4]
        return table, clicked

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(self.data()))


class AirPressure(Case):
    """Raw readings near 101,325 pascal into a convolution over time that is trained by gradient descent."""

    kinds = ("unscaled-data",)
    places = ("pressure",)
    good = 0.4
    unit = 1e2
    level = 101_325.0
    cure = settings(unit=1.0, level=0.0)
    lr = 0.02

    def build(self) -> None:
        self.conv = nn.Conv1d(1, 8, 4)
        self.out = nn.Linear(8 * 13, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(11)
        change = torch.randn(512, 16, generator=random)
        storm = change[:, -4:].mean(1, keepdim=True) - change[:, :4].mean(1, keepdim=True)
        return {"pressure": (self.level + self.unit * change)[:, None], "storm": storm}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = functional.relu(self.conv(batch["pressure"]))
        return functional.mse_loss(self.out(hidden.flatten(1)), batch["storm"])

    def score(self) -> float:
        return float(self.loss(self.data()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SensorGlitch(Case):
    """One row of one batch was read while the sensor was unplugged: 32 thousand times the usual values."""

    kinds = ("outlier-batch",)
    places = ("[0]",)
    rows = (5, 1605)
    good = 0.1
    glitch = 3.2e4
    cure = settings(glitch=1.0)
    shuffle = False
    lr = 0.05
    steps = 90

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        readings = torch.randn(1920, 7, generator=noise(12))
        target = 0.5 * readings[:, :2].sum(1, keepdim=True)
        readings[1605] *= self.glitch
        return readings, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class GramsForKilograms(Case):
    """The weights in one file, which fills one batch, are in grams and in kilograms everywhere else."""

    kinds = ("outlier-batch",)
    places = ("weight",)
    good = 0.2
    unit = 1000.0
    cure = settings(unit=1.0)
    shuffle = False
    lr = 0.02
    steps = 80

    def build(self) -> None:
        self.conv = nn.Conv2d(1, 6, 3)
        self.out = nn.Linear(6 * 36, 1)

    def data(self) -> dict[str, Tensor]:
        scan = torch.rand(2560, 1, 8, 8, generator=noise(13))
        weight = 4 * scan.mean((1, 2, 3)) + scan[:, 0, 0, 0]
        weight[1600:1632] *= self.unit
        return {"scan": scan, "weight": weight}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = functional.relu(self.conv(batch["scan"])).flatten(1)
        return functional.mse_loss(self.out(hidden).squeeze(1), batch["weight"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
