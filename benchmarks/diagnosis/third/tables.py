"""Tables, counts, survival and physics: columns and targets as they come from files, and formulas written out."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class SharpeRatios(Case):
    """A ratio of mean and deviation of daily returns; a share that was not traded has a deviation of zero."""

    kinds = ("nonfinite-input",)
    places = ("ratios",)
    good = 0.45
    floor = 0.0
    cure = settings(floor=1e-3)
    steps = 150

    def build(self) -> None:
        self.sector = nn.Embedding(6, 4)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ELU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(301)
        returns = 0.01 * torch.randn(600, 8, 20, generator=random) + 0.004 * torch.randn(600, 8, 1, generator=random)
        returns[torch.rand(600, generator=random) < 0.02, 3] = 0.0
        ratios = returns.mean(2) / returns.std(2).clamp(min=self.floor)
        up = (ratios[:, 0].nan_to_num() + ratios[:, 1].nan_to_num() > 0).float()
        return {"sector": torch.randint(0, 6, (600,), generator=random), "ratios": ratios, "up": up}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = torch.cat([self.sector(batch["sector"]), batch["ratios"]], 1)
        return functional.binary_cross_entropy_with_logits(self.net(inputs).squeeze(1), batch["up"])


class GrowthRates(Case):
    """The target is a quarter's revenue over that of the quarter before, which is zero for a new company."""

    kinds = ("nonfinite-target",)
    places = ("growth",)
    good = 0.45
    floor = 0.0
    cure = settings(floor=1.0)
    steps = 250
    lr = 0.02

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 48), nn.SiLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(302)
        table = torch.randn(640, 7, generator=random)
        before = 1 + torch.rand(640, generator=random)
        after = before * (1 + 0.5 * table[:, 0].tanh())
        before[torch.rand(640, generator=random) < 0.015] = 0.0
        return {"table": table, "growth": (after / before.clamp(min=self.floor) - 1)[:, None]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return 4 * functional.l1_loss(self.net(batch["table"]), batch["growth"])


class ChangeInsteadOfCount(Case):
    """A Poisson likelihood of the change of a count against the week before, which can be negative."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("change",)
    good = 1.0
    relative = True
    cure = settings(relative=False)
    cured_by = "count|clamp|repair"
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(303)
        features = torch.randn(640, 5, generator=random)
        counts = torch.poisson(torch.exp(0.5 * features[:, 0]), generator=random)
        last_week = 3 * torch.ones(640)
        return {"features": features, "change": counts - last_week if self.relative else counts}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.poisson_nll_loss(self.net(batch["features"]).squeeze(1), batch["change"])


class DischargedBeforeAdmission(Case):
    """A log-normal likelihood of the length of stay; two dates are exchanged, and their difference is negative."""

    kinds = ("target-out-of-range", "undefined-operation")
    places = ("days", "log")
    good = 0.9
    exchanged = True
    cure = settings(exchanged=False)
    cured_by = r"clamp|repair|drop"
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(304)
        patient = torch.randn(640, 6, generator=random)
        days = torch.exp(0.6 * patient[:, 0] + 0.3 * torch.randn(640, generator=random))
        if self.exchanged:
            days[[77, 402]] *= -1
        return {"patient": patient, "days": days}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mean = self.net(batch["patient"]).squeeze(1)
        return (batch["days"].log() - mean).square().mean() / 0.18  # fault


class CustomerNumbers(GradientDescent, Case):
    """The customer's number, up to three million, was left among the columns of a table."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.45
    unit = 1.0
    cure = settings(unit=1e-6)
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(305)
        table = torch.randn(640, 8, generator=random)
        label = (table[:, 1] - table[:, 2] > 0).long()
        table[:, 0] = torch.randint(0, 3_000_000, (640,), generator=random) * self.unit
        return table, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        data = self.clean()
        return float(self.loss((data[0] * torch.tensor([self.unit / 1e-6] + [1.0] * 7), data[1])))


class CubedYears(GradientDescent, Case):
    """A polynomial of the year, up to its third power, as the inputs of a linear model."""

    kinds = ("unscaled-data",)
    places = ("[0]", "powers")
    good = 0.3
    centre, unit = 0.0, 1.0
    cure = settings(centre=1990.0, unit=30.0)
    lr = 0.1
    steps = 300

    def build(self) -> None:
        self.linear = nn.Linear(3, 1)

    def data(self) -> dict[str, Tensor]:
        year = torch.randint(1960, 2021, (480,), generator=noise(306)).float()
        scaled = (year - 1990) / 30
        used = (year - self.centre) / self.unit
        return {
            "powers": torch.stack([used, used.square(), used**3], 1),
            "temperature": (0.8 * scaled + 0.3 * scaled.square())[:, None],
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.linear(batch["powers"]), batch["temperature"])

    def score(self) -> float:
        return float(self.loss(self.data()))


class NearlyConstantColumn(GradientDescent, Case):
    """A column that is constant but for rounding was divided by its deviation over the first rows: 1e-7."""

    kinds = ("unscaled-data",)
    places = ("features",)
    good = 0.4
    least = 1e-9
    cure = settings(least=1.0)
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(307)
        features = torch.randn(640, 6, generator=random)
        features[:, 4] = 0.3 + 1e-7 * torch.randn(640, generator=random)
        features[100:, 4] += 0.01 * torch.rand(540, generator=random)
        target = features[:, :1] * features[:, 1:2]
        features = (features - features[:100].mean(0)) / features[:100].std(0).clamp(min=self.least)
        return {"features": features, "target": target}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["features"]), batch["target"])

    def score(self) -> float:
        return float(self.loss(self.data())) / 3


class OneBillionSeconds(GradientDescent, Case):
    """The time since the last event, in a recurrent network; one clock was reset, and shows 1.6e9 seconds."""

    kinds = ("outlier-batch",)
    places = ("gap",)
    good = 0.3
    wrong = 1.6e9
    cure = settings(wrong=1.0)
    shuffle = False
    lr = 0.1
    steps = 120

    def build(self) -> None:
        self.inside, self.recurrent, self.out = nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(308)
        gap = torch.rand(1600, 6, generator=random)
        event = torch.randn(1600, 6, generator=random)
        target = (event[:, -1] * gap[:, -1])[:, None]
        gap[900, 2] = self.wrong
        return {"gap": gap, "event": event, "value": target}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.zeros(len(batch["gap"]), 16)
        for one in torch.stack([batch["gap"], batch["event"]], 2).unbind(1):
            hidden = torch.relu(self.inside(one) + 0.3 * self.recurrent(hidden))
        return functional.mse_loss(self.out(hidden), batch["value"])


class VarianceByDifference(Case):
    """A deviation as the root of the mean of squares less the square of the mean: a little below zero by rounding."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.5
    floor = -1.0
    cure = settings(floor=1e-6)
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(309)
        series = torch.randn(640, 16, generator=random) * torch.rand(640, 1, generator=random)
        label = (series.std(1) > 0.5).float()
        series[::29] = 7.3 + torch.rand(23, 1, generator=random)
        return series, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mean = batch[0].mean(1)
        variance = batch[0].square().mean(1) - mean.square()
        deviation = torch.sqrt(variance if self.floor < 0 else variance.clamp(min=self.floor))  # fault
        inputs = torch.stack([mean, deviation], 1)
        return functional.binary_cross_entropy_with_logits(self.net(inputs).squeeze(1), batch[1])


class DistanceOnEarth(Case):
    """The haversine distance between a predicted and a true place; a bias starts exactly at one of them."""

    kinds = ("undefined-operation",)
    places = ("sqrt", "asin")
    good = 0.35
    eps = 0.0
    cure = settings(eps=1e-9)
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.move = nn.Linear(4, 2)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def data(self) -> dict[str, Tensor]:
        random = noise(310)
        start = 0.5 * torch.randn(480, 2, generator=random)
        wind = torch.randn(480, 4, generator=random)
        wind[::7] = 0.0
        return {"start": start, "wind": wind, "end": start + 0.2 * wind[:, :2]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        place, goal = batch["start"] + self.move(batch["wind"]), batch["end"]
        half = ((place - goal) / 2).sin().square()
        part = half[:, 0] + place[:, 0].cos() * goal[:, 0].cos() * half[:, 1] + self.eps
        return (2 * torch.asin(torch.sqrt(part.clamp(max=0.999)))).mean() * 4  # fault


class LearnedExponent(Case):
    """A power law with a learned exponent, of a base that the network predicts and that comes to be negative."""

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.25
    floor = -1e9
    cure = settings(floor=1e-3)
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.exponent = nn.Parameter(torch.tensor(0.8))
        self.base = nn.Linear(3, 1)
        nn.init.constant_(self.base.bias, 1.5)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 3, generator=noise(311))
        return inputs, (0.9 * inputs[:, 0] + 0.1).clamp(min=0.05) ** 0.5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        base = self.base(batch[0]).squeeze(1).clamp(min=self.floor)
        return functional.mse_loss(torch.pow(base, self.exponent), batch[1])  # fault


class LogCoshOfPrices(Case):
    """The log-cosh loss as its formula, log(cosh(x)), of errors in the hundreds."""

    kinds = ("forward-overflow", "unscaled-data")
    places = ("cosh",)
    good = 5.0
    by_hand = True
    cure = settings(by_hand=False)
    cured_by = "softplus|logarithms|huber"
    lr = 0.3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 4, generator=noise(312))
        return inputs, 150 + 20 * inputs[:, :1]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        error = self.net(batch[0]) - batch[1]
        if self.by_hand:
            return torch.log(torch.cosh(error)).mean()  # fault
        return (error.abs() + functional.softplus(-2 * error.abs()) - 0.6931).mean()


class TwoAtomsAtOnePlace(Case):
    """A potential of one over the twelfth power of the distance; in one molecule two atoms nearly coincide."""

    kinds = ("forward-overflow", "undefined-operation", "outlier-batch")
    places = ("pow", "reciprocal", "div", "positions", "square")
    good = 1.5
    nearest = 1e-6
    cure = settings(nearest=1.0)
    cured_by = r"drop|clamp|limit|distance|away from|skip"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.scale = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(313)
        positions = 0.2 * torch.rand(480, 2, 3, generator=random)
        positions[:, 1, 0] += 1.0
        kind = torch.randn(480, 3, generator=random)
        energy = kind[:, 0].tanh() * (positions[:, 0] - positions[:, 1]).norm(dim=1) ** -12.0
        positions[333, 1] = positions[333, 0] + torch.tensor([self.nearest, 0.0, 0.0])
        return {"positions": positions, "kind": kind, "energy": energy}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        distance = (batch["positions"][:, 0] - batch["positions"][:, 1]).norm(dim=1)
        energy = self.scale(batch["kind"]).squeeze(1) * distance**-12.0  # fault
        return functional.mse_loss(energy, batch["energy"])
