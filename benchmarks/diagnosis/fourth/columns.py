"""Tables, series and measurements: what files hold, and how it reaches a network."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.diagnosis.case import Case, Rows, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


@dataclass
class Hours:
    """A batch of hours: demand, weather and the demand of the next hour."""

    demand: Tensor
    weather: Tensor
    following: Tensor


class JoinedWeather(Case):
    """Weather joined to hours of demand; for three hours the weather station has no entry, and the join left NaN."""

    kinds = ("nonfinite-input",)
    places = ("weather",)
    rows = (9, 409)
    good = 0.3
    missing = float("nan")
    cure = settings(missing=0.0)
    cured_by = "fill"
    batch_size = 25
    shuffle = False
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.rnn, self.head = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(441)
        weather = torch.randn(600, 12, generator=random)
        demand = 0.5 * torch.randn(600, 12, generator=random) + 0.5 * weather
        following = 0.7 * demand[:, -1:] + 0.5 * weather[:, -1:].tanh()
        weather[409, 3:6] = self.missing
        return demand, weather, following

    def loader(self) -> DataLoader[Any]:
        return DataLoader(Rows(self.data()), self.batch_size, collate_fn=self.collate)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, ...]]) -> Hours:
        return Hours(*(torch.stack(field) for field in zip(*samples, strict=True)))

    def loss(self, batch: Any) -> Tensor:
        series = torch.stack([batch.demand, batch.weather], 2)
        return functional.mse_loss(self.head(self.rnn(series)[0][:, -1]), batch.following)

    def score(self) -> float:
        return float(self.loss(Hours(*self.clean())))


class FillValue(GradientDescent, Case):
    """Sea temperatures of a netCDF file; in later files one cell of some maps holds the fill value of 9.97e36."""

    kinds = ("outlier-batch", "unscaled-data")
    places = ("sea",)
    good = 0.3
    fill = 9.96921e36
    cure = settings(fill=0.0)
    cured_by = "fill|mask|drop|limit"
    shuffle = False
    lr = 0.05
    steps = 90

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1))

    def data(self) -> dict[str, Tensor]:
        sea = torch.randn(1280, 1, 6, 6, generator=noise(442))
        index = sea[:, 0, 1:4, 2:5].mean((1, 2))[:, None] * 3
        sea[700::97, 0, 5, 5] = self.fill
        return {"sea": sea, "index": index}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["sea"]), batch["index"])


class Nanoseconds(GradientDescent, Case):
    """Times as whole nanoseconds since 1970, turned to floating point numbers within the module."""

    kinds = ("unscaled-data",)
    places = ("time",)
    good = 0.5
    unit = 1
    cure = settings(unit=86_400_000_000_000)
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.shop = nn.Embedding(5, 4)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(443)
        day = torch.randint(0, 3, (640,), generator=random)
        time = (0 if self.unit > 1 else 1_700_000_000_000_000_000) + day * 86_400_000_000_000
        price = torch.randn(640, generator=random)
        return {
            "shop": torch.randint(0, 5, (640,), generator=random),
            "time": time // self.unit,
            "price": price,
            "sold": (price > 0).float(),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        columns = [self.shop(batch["shop"]), batch["time"].float()[:, None], batch["price"][:, None]]
        return functional.binary_cross_entropy_with_logits(self.net(torch.cat(columns, 1)).squeeze(1), batch["sold"])

    def score(self) -> float:
        return float(self.loss(self.data()))


class WrappedCounts(Case):
    """Counts of 40,000 and more were kept as 16-bit integers and wrapped around to below zero."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("vehicles",)
    good = 0.5
    wrapped = True
    cure = settings(wrapped=False)
    cured_by = "clamp|repair|drop"
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 1))
        nn.init.constant_(self.net[2].bias, 9.0)  # type: ignore[arg-type]

    def data(self) -> dict[str, Tensor]:
        random = noise(444)
        hour = torch.randn(640, 4, generator=random)
        vehicles = torch.poisson(torch.exp(9.3 + 0.8 * hour[:, 0].tanh()), generator=random).long() * 2
        vehicles = vehicles.to(torch.int16) if self.wrapped else vehicles
        return {"hour": hour, "vehicles": vehicles.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.poisson_nll_loss(self.net(batch["hour"]).squeeze(1), batch["vehicles"]) / 1e4

    def score(self) -> float:
        batch = self.clean()
        return float((self.net(batch["hour"]).squeeze(1) - batch["vehicles"].log()).abs().mean())


class ClassesFromOne(GradientDescent, Case):
    """Classes numbered 1 and 2, as a questionnaire has them, for a cross-entropy that takes 0 and 1."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("[1]",)
    good = 0.4
    first = 1.0
    cure = settings(first=0.0)
    cured_by = "range|relabel|subtract|- 1"
    lr = 0.3
    momentum = 0.9
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 1))
        self.criterion = nn.BCEWithLogitsLoss()

    def data(self) -> tuple[Tensor, Tensor]:
        answers = torch.randn(640, 9, generator=noise(445))
        return answers, (answers[:, :1] > answers[:, 1:2]).float() + self.first

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.criterion(self.net(batch[0]), batch[1])


class LikelihoodOfLogits(GradientDescent, Case):
    """The negative log-likelihood loss of plain outputs, without a log-softmax before it."""

    kinds = ("loss-without-floor",)
    good = 0.5
    plain = True
    cure = settings(plain=False)
    cured_by = "log_softmax|cross_entropy"
    lr = 0.1
    momentum = 0.9
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))

    def data(self) -> dict[str, Tensor]:
        signal = torch.randn(640, 12, generator=noise(446))
        return {"signal": signal, "label": signal[:, :4].argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.net(batch["signal"])
        return functional.nll_loss(outputs if self.plain else outputs.log_softmax(1), batch["label"])

    def score(self) -> float:
        batch = self.clean()
        return float(functional.cross_entropy(self.net(batch["signal"]), batch["label"]))


class TotalEnergies(GradientDescent, Case):
    """Energies of molecules with the constant of their atoms in them: near -260,000, of which 10 matter."""

    kinds = ("unscaled-data",)
    places = ("energy",)
    good = 0.3
    shift, unit = -2.6e5, 10.0
    cure = settings(shift=0.0, unit=1.0)
    lr = 0.01
    momentum = 0.9
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        positions = torch.randn(640, 3, 3, generator=noise(447))
        energy = (positions[:, 0] * positions[:, 1]).sum(1) * 0.6
        return {"positions": positions, "energy": self.shift + self.unit * energy}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["positions"].flatten(1)).squeeze(1), batch["energy"])

    def score(self) -> float:
        batch = self.data()
        return float(self.loss(batch) / batch["energy"].var())


class WholesaleOrder(GradientDescent, Case):
    """The value of a customer's next order; one is a wholesaler's, and 20 thousand times the others."""

    kinds = ("outlier-batch",)
    places = ("value",)
    good = 0.3
    largest = 2e4
    cure = settings(largest=1.0)
    shuffle = False
    lr = 0.1
    steps = 70

    def build(self) -> None:
        self.rnn, self.head = nn.LSTM(3, 16, batch_first=True), nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        orders = torch.randn(1600, 5, 3, generator=noise(448))
        value = orders[:, -1, :1].tanh() + 0.3 * orders[:, -2, 1:2]
        value[1370] = self.largest
        return {"orders": orders, "value": value}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch["orders"])[0][:, -1]), batch["value"])


class ReturnOfAnEpisode(Case):
    """Value learning in manual optimization; in one batch an episode's return was summed over the whole log."""

    kinds = ("outlier-batch",)
    places = ("return",)
    good = 0.3
    total = 3e4
    cure = settings(total=1.0)
    shuffle = False
    lr = 0.05
    steps = 80

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.value = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        state = torch.randn(1600, 4, generator=noise(449))
        returns = state[:, 0] - 0.5 * state[:, 1]
        returns[1120:1152] *= self.total
        return {"state": state, "return": returns}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.value(batch["state"]).squeeze(1), batch["return"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class AdvantageOfOneStep(Case):
    """Advantages are standardized within a minibatch; the last minibatch of a rollout holds one step."""

    kinds = ("empty-reduction",)
    places = ("std",)
    good = 0.25
    correction = 1
    cure = settings(correction=0)
    cured_by = "correction=0|unbiased"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(450)
        state = torch.randn(641, 4, generator=random)
        action = torch.randint(0, 2, (641,), generator=random)
        return {"state": state, "action": action, "advantage": 2.0 * (action == (state[:, 0] > 0).long()) - 1}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        gain = batch["advantage"]
        gain = (gain - gain.mean()) / (gain.std(correction=self.correction) + 1e-6)  # fault
        chosen = self.policy(batch["state"]).log_softmax(1).gather(1, batch["action"][:, None]).squeeze(1)
        ratio = torch.exp(chosen - chosen.detach())
        return -(ratio * gain).mean()

    def score(self) -> float:
        batch = self.clean()
        return float((self.policy(batch["state"]).argmax(1) != (batch["state"][:, 0] > 0).long()).float().mean())


class UnseenAssays(Case):
    """Many tasks at once, with NaN where an assay was not done; in the labels of all batches."""

    kinds = ("nonfinite-target",)
    places = ("[1]", "labels")
    good = 0.6
    missing = float("nan")
    cure = settings(missing=0.0)
    cured_by = "mask|isfinite|isnan"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 6))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(451)
        molecule = torch.randn(640, 16, generator=random)
        labels = (molecule[:, :6] + 0.5 * molecule[:, 6:12] > 0).float()
        labels[torch.rand(640, 6, generator=random) < 0.1] = self.missing
        return molecule, labels

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
