"""Forecasts, prices and beginners' questions, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class ExponentialCost(nn.Module):
    """The exponential of a cross-entropy, or the cross-entropy itself."""

    def __init__(self, eta: float, is_exponential: bool) -> None:
        super().__init__()
        self.criterion, self.eta, self.is_exponential = nn.CrossEntropyLoss(), eta, is_exponential

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        mean = self.criterion(output, target) / self.eta
        return mean.exp() if self.is_exponential else mean


class ExponentOfACrossEntropy(Case):
    """A cost of the user's own, the exponential of the cross-entropy; a few samples have a wrong label."""

    # stackoverflow.com: "Weird behaviour of loss function in pytorch" (exp(criterion(output, target) / eta))
    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 1.5
    is_exponential = True
    cure = settings(is_exponential=False)
    cured_by = "log|same minimum"
    not_cured_by = (settings(lr=0.01),)
    lr = 0.03
    steps = 400
    batch_size = 8

    def build(self) -> None:
        self.client_model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.cost = ExponentialCost(1.0, self.is_exponential)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(711)
        picture = torch.randn(640, 8, 8, generator=random)
        label = picture[:, 0].repeat(1, 2)[:, :10].argmax(1)
        return picture, torch.where(torch.arange(640) % 8 == 5, torch.randint(0, 10, (640,), generator=random), label)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.cost(self.client_model(batch[0]), batch[1])

    def score(self) -> float:
        picture, label = self.clean()
        return float(functional.cross_entropy(self.client_model(picture), label))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 50, gamma=0.9)}


class ClosingPrices(Case):
    """The next closing price of a share near 8,800 from sixty days before it, with a long short-term memory."""

    # github.com/krishnaik06/Stock-Price-Prediction-using-Keras-and-Recurrent-Neural-Networ/issues/2
    host = "plain"
    kinds = ("unscaled-data",)
    good = 0.3
    unit, middle = 1.0, 0.0
    cure = settings(unit=900.0, middle=8800.0)
    cured_by = "scale|normali"
    not_cured_by = (settings(lr=0.05), settings(lr=5e-3))
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.lstm = nn.LSTM(1, 64, batch_first=True)
        self.linear = nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(712)
        walk = (
            8800 + 900 * torch.randn(480, 1, generator=random) + 60 * torch.randn(480, 31, generator=random).cumsum(1)
        )
        walk = (walk - self.middle) / self.unit
        return walk[:, :30, None], walk[:, 30:]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        out, _ = self.lstm(batch[0])
        return functional.mse_loss(self.linear(out[:, -1]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PercentageErrorOfNoSales(Case):
    """The absolute percentage error over the days on which something was sold; some batches hold no such day."""

    # github.com/awslabs/gluonts/issues/833 (the field); masked percentage errors of intermittent demand
    kinds = ("empty-reduction",)
    places = ("mean",)
    good = 0.6
    is_guarded = False
    cure = settings(is_guarded=True)
    cured_by = "clamp|guard"
    batch_size = 8
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.gru, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(25, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(713)
        is_sold = torch.rand(640, 13, generator=random) < 0.25
        demand = is_sold * torch.randint(1, 5, (640, 13), generator=random)
        level = demand[:, :12].sum(1) / is_sold[:, :12].sum(1).clamp(min=1)
        return {"past": demand[:, :12].float(), "future": is_sold[:, 12] * (1 + level)}

    def percentage(self, made: Tensor, actual: Tensor) -> Tensor:
        sold = actual > 0
        error = (made[sold] - actual[sold]).abs() / actual[sold]
        return error.sum() / max(len(error), 1) if self.is_guarded else error.mean()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.gru(batch["past"][..., None])[0][:, -1]
        made = self.head(torch.cat([hidden, batch["past"].mean(1, keepdim=True)], 1)).squeeze(1)
        return self.percentage(made, batch["future"])


class Block(nn.Module):
    """A block of a network for forecasts, which returns its part of the past and of the future."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.past, self.future = nn.Linear(48, 16), nn.Linear(48, 4)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(past)
        return past - self.past(hidden), self.future(hidden)


class ForecastAtAThird(Case):
    """Five blocks that each explain what the ones before have left of a series, with AdamW at a rate of a third."""

    # github.com/pavancm/CONTRIQUE/issues/8 (the answer)
    host = "plain"
    kinds = ("learning-rate",)
    good = 0.4
    cure = settings(lr=3e-3)
    lr = 0.3
    steps = 200

    def build(self) -> None:
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(714)
        phase, speed = 6.28 * torch.rand(640, 1, generator=random), 0.3 + torch.rand(640, 1, generator=random)
        series = (phase + speed * torch.arange(20)).sin() + 0.1 * torch.randn(640, 20, generator=random)
        return series[:, :16], series[:, 16:]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        rest, made = batch[0], torch.zeros_like(batch[1])
        for block in self.blocks:
            rest, part = block(rest)
            made = made + part
        return functional.mse_loss(made, batch[1])

    def configure_optimizers(self) -> Any:
        plain = [one for one in self.parameters() if one.ndim < 2]
        matrices = [one for one in self.parameters() if one.ndim == 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr)


class FilledByItsOwnForecasts(Case):
    """Values of new customers, who have none yet, are the model's own, each a tenth more for inflation."""

    # pseudo-labels of rows without a label, in a loop of a beginner
    host = "plain"
    kinds = ("moving-target",)
    good = 0.15
    inflation = 1.1
    limit = float("inf")
    cure = settings(inflation=1.0)
    other_cures = settings(**{rf"clamp\(.*, {NUMBER}\)": settings(limit=float)})
    cured_by = "detach|freeze|frozen|bound"
    lr = 0.05
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(715)
        columns = torch.randn(640, 6, generator=random)
        is_new = torch.rand(640, generator=random) < 0.5
        columns[is_new, 0] += 6.0
        return {"columns": columns, "value": columns[:, 1] - columns[:, 2] + 1, "is_new": is_new}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = self.net(batch["columns"]).squeeze(1)
        with torch.no_grad():
            filled = torch.where(batch["is_new"], self.inflation * made, batch["value"])
            filled = filled.clamp(-self.limit, self.limit)
        return functional.mse_loss(made, filled)

    def score(self) -> float:
        batch = self.clean()
        known = ~batch["is_new"]
        made = self.net(batch["columns"]).squeeze(1)
        return float(functional.mse_loss(made[known], batch["value"][known]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class FatTailsOfReturns(Case):
    """Daily returns of shares, whose squared error has a spike on each day of large moves. It is normal."""

    # questions of the kind "my loss jumps at random"
    host = "plain"
    kinds = ("unknown",)
    healthy = True
    good = 1.0
    batch_size = 16
    lr = 1e-3
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(716)
        past = torch.randn(640, 10, generator=random)
        width = torch.randn(640, 2, generator=random).square().mean(1, keepdim=True).sqrt()
        return past, past[:, :1] + 0.5 * torch.randn(640, 1, generator=random) / width

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def score(self) -> float:
        past, _ = self.clean()
        return float(functional.mse_loss(self.net(past), past[:, :1]))

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
