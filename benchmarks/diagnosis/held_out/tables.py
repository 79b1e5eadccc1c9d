"""Tables, prices, counts, survival times and ratings."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


@cache
def tumours() -> tuple[Tensor, Tensor]:
    """Return 569 tumours with 30 standardized measurements, and whether each is benign, in a fixed random order."""
    measured, benign = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(benign), generator=noise(120))
    table = torch.tensor(measured, dtype=torch.float32)[order]
    return (table - table.mean(0)) / table.std(0), torch.tensor(benign, dtype=torch.float32)[order]


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Return 442 patients with ten standardized measurements, and the progress of their diabetes, from 25 to 346."""
    measured, progress = load_diabetes(return_X_y=True)
    return torch.tensor(measured * 21, dtype=torch.float32), torch.tensor(progress, dtype=torch.float32)


class ReturnFromNothing(Case):
    """The target is a price's change in percent, and one share was quoted at zero the day before."""

    kinds = ("nonfinite-target",)
    places = ("[1]",)
    rows = (19, 339)
    good = 0.4
    price = 0.0
    cure = settings(price=1.0)
    shuffle = False
    batch_size = 40
    lr = 5e-3

    def build(self) -> None:
        self.gru = nn.GRU(1, 20, batch_first=True)
        self.forecast = nn.Linear(20, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        changes = 0.1 * torch.randn(600, 9, generator=noise(121))
        changes[:, 8] = -0.8 * changes[:, 7]
        prices = torch.exp(changes.cumsum(1))
        yesterday = prices[:, 7].clone()
        if self.price == 0:
            yesterday[339] = 0.0
        return 10 * changes[:, :8, None], 10 * ((prices[:, 8] - yesterday) / yesterday)[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.forecast(self.gru(batch[0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.NAdam(self.parameters(), lr=self.lr)


class AllOfIt(Case):
    """Shares between 0 and 1 under a beta distribution, which has no density at exactly 1."""

    kinds = ("target-out-of-range", "undefined-operation")
    places = ("share", "log", "log1p", "log_prob", "xlogy")
    rows = (6, 156)
    good = -0.4
    most = 1.0
    cure = settings(most=0.999)
    cured_by = "clamp|open interval|between"
    shuffle = False
    batch_size = 25
    lr = 0.02

    def build(self) -> None:
        self.shape = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2), nn.Softplus())

    def data(self) -> dict[str, Tensor]:
        household = torch.randn(500, 6, generator=noise(122))
        share = torch.sigmoid(1.5 * household[:, 0] + 0.5 * household[:, 1])
        share[156] = self.most
        return {"household": household, "share": share}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first, second = (self.shape(batch["household"]) + 0.1).unbind(1)
        density = Beta(first, second, validate_args=False)
        return -density.log_prob(batch["share"]).mean()  # type: ignore[no-untyped-call]  # fault


class RefundsAsCounts(Case):
    """Purchases less returns as the counts of a Poisson loss: where they are negative, it falls for ever."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("[1]",)
    good = 1.2
    least = -20.0
    cure = settings(least=0.0)
    cured_by = "negative"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.rate = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(123)
        customer = torch.randn(700, 8, generator=random)
        bought = torch.poisson(torch.exp(0.3 * customer[:, :1]), generator=random)
        returned = torch.poisson(6.0 * (customer[:, 1:2] > 0.5), generator=random)
        return customer, (bought - returned).clamp(min=self.least)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.poisson_nll_loss(self.rate(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=self.lr * 4)


class OneShareThatDay(Case):
    """The correlation of forecast and return over the shares of a day, and a day on which only one was traded."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "traded")
    rows = (2, 114)
    good = 0.5
    least = 0.0
    cure = settings(least=1e-6)
    cured_by = r"clamp|max\(|\beps|one (?:element|value|row|share)|two (?:elements|values)"
    shuffle = False
    batch_size = 16
    steps = 150
    lr = 5e-3

    def build(self) -> None:
        self.forecast = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(124)
        shares = torch.randn(320, 12, 5, generator=random)
        returns = shares[..., 0] - shares[..., 1] + 0.5 * torch.randn(320, 12, generator=random)
        traded = (torch.rand(320, 12, generator=random) < 0.8).float()
        traded[114] = functional.one_hot(torch.tensor(3), 12)
        return {"shares": shares, "returns": returns, "traded": traded}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        traded, count = batch["traded"], batch["traded"].sum(1, keepdim=True)
        forecast = self.forecast(batch["shares"]).squeeze(2)
        forecast = (forecast - (forecast * traded).sum(1, keepdim=True) / count) * traded
        returns = (batch["returns"] - (batch["returns"] * traded).sum(1, keepdim=True) / count) * traded
        spread = (forecast.square().sum(1) * returns.square().sum(1)).clamp(min=self.least).sqrt()
        return 1 - ((forecast * returns).sum(1) / spread).mean()  # fault

    def score(self) -> float:
        data = {name: field[:100] for name, field in self.clean().items()}
        return float(self.loss(data))


class SharesTraded(Case):
    """Volumes of some ten millions a day, raw, as inputs and targets of a recurrent network."""

    kinds = ("unscaled-data",)
    places = ("volumes", "next_volume")
    good = 0.7
    unit = 1e7
    cure = settings(unit=1.0)
    lr = 0.2
    steps = 150

    def build(self) -> None:
        self.lstm = nn.LSTM(1, 16, batch_first=True)
        self.forecast = nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        walk = 1 + 0.3 * torch.randn(480, 12, generator=noise(125))
        walk[:, 11] = 0.6 * walk[:, 10] + 0.4 * walk[:, 9]
        return {"volumes": self.unit * walk[:, :11, None], "next_volume": self.unit * walk[:, 11:]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.forecast(self.lstm(batch["volumes"])[0][:, -1]), batch["next_volume"])

    def score(self) -> float:
        data = self.data()
        return float(self.loss(data) / data["next_volume"].var())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class MomentumOfOne(Case):
    """A momentum of 1.0: velocities are never lost, and the weights swing ever wider."""

    kinds = ("optimizer-state", "learning-rate")
    good = 0.5
    momentum = 1.0
    cure = settings(momentum=0.9)
    cured_by = "momentum"
    steps = 150
    lr = 0.1

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        measured, progress = patients()
        return measured, ((progress - progress.mean()) / progress.std())[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


class OnlyOneCleared(Case):
    """Two optimizers, and the gradients of the second are never cleared."""

    kinds = ("accumulated-gradients",)
    places = ("decoder",)
    good = 0.35
    clear_both = False
    cure = settings(clear_both=True)
    steps = 300
    lr = 0.4

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.encoder = nn.Linear(30, 20)
        self.decoder = nn.Linear(20, 30)

    def data(self) -> tuple[Tensor]:
        return (tumours()[0],)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        return functional.mse_loss(self.decoder(torch.tanh(self.encoder(batch[0]))), batch[0])

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        first, second = self.torch_optimizer(0), self.torch_optimizer(1)
        first.zero_grad()
        if self.clear_both:
            second.zero_grad()
        loss = self.loss(batch)
        self.log("reconstruction", loss)
        self.manual_backward(loss)
        first.step()
        second.step()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(net.parameters(), lr=self.lr) for net in (self.encoder, self.decoder)]
        return optimizers, []


class RatingsTooFast(Case):
    """Factors of users and films by gradient descent at a rate of 60."""

    kinds = ("learning-rate",)
    good = 0.6
    lr = 60.0
    cure = settings(lr=4.0)
    batch_size = 64
    steps = 250

    def build(self) -> None:
        self.user, self.film = nn.Embedding(30, 6), nn.Embedding(25, 6)

    def data(self) -> dict[str, Tensor]:
        random = noise(126)
        user, film = torch.randint(0, 30, (900,), generator=random), torch.randint(0, 25, (900,), generator=random)
        taste, style = torch.randn(30, 2, generator=random), torch.randn(25, 2, generator=random)
        return {"user": user, "film": film, "rating": (taste[user] * style[film]).sum(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = (self.user(batch["user"]) * self.film(batch["film"])).sum(1)
        return functional.mse_loss(predicted, batch["rating"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class CoshOfMinutes(Case):
    """A log-cosh loss written out, of delays in minutes: cosh of an error of 90 is infinite."""

    kinds = ("forward-overflow",)
    places = ("cosh",)
    good = 6.0
    stable = False
    cure = settings(stable=True)
    most = float("inf")
    cured_by = "logaddexp|huber|smooth"
    other_cures = settings(**{r"bound the argument|clamp\(max": settings(most=20.0)})
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.delay = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(127)
        flight = torch.randn(600, 5, generator=random)
        return flight, 12 * (flight[:, :1] + flight[:, 1:2].exp()).clamp(-5, 12)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        error = self.delay(batch[0]) - batch[1]
        if self.stable:
            return (error + functional.softplus(-2 * error) - 0.6931).mean()
        return torch.log(torch.cosh(error.clamp(-self.most, self.most))).mean()  # fault

    def score(self) -> float:
        flight, delay = self.clean()
        return float((self.delay(flight) - delay).abs().mean())


class TwelfthPowers(Case):
    """A polynomial of degree 12 of a year's day number, whose powers leave the range of the number format."""

    kinds = ("forward-overflow", "unscaled-data")
    places = ("pow", "[0]")
    good = 0.4
    unit = 2000.0
    cure = settings(unit=1.0)
    cured_by = "standardi|rescale|near one|normali|divide"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.weights = nn.Linear(12, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        day = 2 * torch.rand(500, 1, generator=noise(128)) - 1
        return self.unit * day, (3 * day).sin()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        powers = torch.cat([batch[0].pow(degree) for degree in range(1, 13)], 1)  # fault
        return functional.mse_loss(self.weights(powers), batch[1])
