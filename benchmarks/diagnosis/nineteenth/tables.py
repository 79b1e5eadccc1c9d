"""Ratings, series and columns, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RowsOfZero(Case):
    """Counts by the product of two matrices that are kept positive, by the divergence of the counts from it.

    Report: github.com/cjlin1/libmf/issues/21. Found by the reporter: large gradients make rows zero and the product
    with them, which is a divisor. Confirmed by a reader: the rate is too big, and a small one solves the problem.
    """

    kinds = ("learning-rate", "undefined-operation")
    host = "plain"
    good = 0.35
    epsilon = 0.0
    lr = 30.0
    cure = settings(lr=1.0)
    cured_by = r"smaller rate|lower the learning rate"
    other_cures = settings(**{r"\beps|clamp|small (?:value|number)": settings(epsilon=1e-3)})
    batch_size = 64
    steps = 450

    def build(self) -> None:
        self.P, self.Q = nn.Parameter(torch.rand(40, 6)), nn.Parameter(torch.rand(50, 6))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19401)
        user = torch.randint(40, (1600,), generator=generator)
        item = torch.randint(50, (1600,), generator=generator)
        taste = torch.rand(40, 3, generator=generator).square() @ torch.rand(3, 50, generator=generator).square()
        return {"u": user, "v": item, "r": 1 + torch.poisson(3 * taste[user, item], generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        z = (self.P[batch["u"]] * self.Q[batch["v"]]).sum(1) + self.epsilon
        r = batch["r"]
        return (r * (r / z).log() - r + z).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        with torch.no_grad():
            self.P.clamp_(min=0.0)
            self.Q.clamp_(min=0.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MissingDays(Case):
    """Series of several stores by blocks of dense layers, with windows of the past; in few series values are missing.

    Report: github.com/Nixtla/neuralforecast/issues/186. Confirmed by a developer: the loss is NaN in training where
    values are missing in the column of the series, and it is hard to notice that it is the data.
    """

    kinds = ("nonfinite-input", "nonfinite-target")
    places = ("insample_y", "outsample_y")
    good = 0.25
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"interpolat|fill|impute|remove|\bdrop\b|mask"
    batch_size = 32
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 22))
            for _ in range(3)
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(19402)
        day = torch.arange(120.0)
        phase = 6.28 * torch.rand(12, 1, generator=generator)
        y = (6.28 * day / 7 + phase).sin() + 0.5 * (0.1 * day + phase).cos()
        y = y + 0.15 * torch.randn(12, 120, generator=generator)
        y[4, 71] = y[9, 18:20] = torch.nan
        if self.fills:
            y = y.nan_to_num(0.0)
        windows = y.unfold(1, 22, 1).flatten(0, 1)
        return {"insample_y": windows[:, :16], "outsample_y": windows[:, 16:]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        residuals, forecast = batch["insample_y"], torch.zeros_like(batch["outsample_y"])
        for block in self.blocks:
            theta = block(residuals)
            residuals = residuals - theta[:, :16]
            forecast = forecast + theta[:, 16:]
        return (forecast - batch["outsample_y"]).abs().mean()


class DividedByZeroDeviation(Case):
    """Readings of sensors by a recurrent network; they were standardized, and one sensor never changes.

    Report: github.com/keras-team/keras/issues/2134. Solved by a reader: after standardization a column is NaN, and a
    small number that is added to the deviation solves it.
    """

    kinds = ("nonfinite-input",)
    places = ("X_train",)
    good = 0.15
    added = 0.0
    cure = settings(added=1e-6)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps|small (?:value|number)|constant|fill|remove|\bdrop\b"
    batch_size = 32
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.lstm = nn.LSTM(6, 24, batch_first=True)
        self.dense = nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19403)
        train = torch.randn(640, 12, 6, generator=generator).cumsum(1) + torch.tensor([5.0, 20.0, -3.0, 0.0, 1.0, 9.0])
        train[..., 3] = 100.0
        y = (0.2 * (train[:, -1, 0] - train[:, -4, 1] + 15)).tanh()
        mean, std = train.mean((0, 1)), train.std((0, 1)) + self.added
        return {"X_train": (train - mean) / std, "y_train": y}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.lstm(batch["X_train"])[0][:, -1]
        return functional.mse_loss(self.dense(hidden)[:, 0], batch["y_train"])


class FourthPower(Case):
    """The fourth power of numbers to a hundred, by a small network that learns the third power of small ones.

    Report: stackoverflow.com/questions/52800582. Confirmed by an accepted answer: inputs of a hundred saturate the
    first layer, and targets of a hundred million are out of reach; both are to be scaled.
    """

    kinds = ("unscaled-data",)
    good = 0.1
    scaled = False
    cure = settings(scaled=True)
    cured_by = r"scal|normali|standardi"
    batch_size = 32
    lr = 5e-3
    steps = 800

    def build(self) -> None:
        self.model = nn.Sequential(nn.Linear(1, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 1))
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def data(self) -> dict[str, Tensor]:
        x = 200 * torch.rand(1280, 1, generator=noise(19404)) - 100
        y = x**4
        return {"x": x / x.std(), "y": (y - y.mean()) / y.std()} if self.scaled else {"x": x, "y": y}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.model(batch["x"]), batch["y"])

    def score(self) -> float:
        """The share of the variance that is not explained."""
        batch = self.data()
        error = functional.mse_loss(self.model(batch["x"]), batch["y"])
        return float(error / batch["y"].var())


class RawAmounts(Case):
    """Clicks by factorization of sparse fields and a deep part, with amounts and times as they are in the log.

    Report: github.com/ChenglongChen/tensorflow-DeepFM/issues/47. Solved by two readers: with other data the area under
    the curve is 0.5 and every prediction is 0 or 1, until the continuous features are normalized.
    """

    kinds = ("unscaled-data",)
    places = ("dense", "numeric")
    good = 0.55
    normalized = False
    cure = settings(normalized=True)
    cured_by = r"scal|normali|standardi"
    batch_size = 64
    lr = 1e-3
    steps = 450

    def build(self) -> None:
        self.embedding = nn.Embedding(30, 8)
        self.numeric_embedding = nn.Parameter(0.1 * torch.randn(4, 8))
        self.linear = nn.Linear(4, 1)
        self.deep = nn.Sequential(nn.Linear(56, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19405)
        sparse = torch.randint(10, (2560, 3), generator=generator)
        taste = torch.randn(3, 10, generator=generator)
        dense = torch.randn(2560, 4, generator=generator).exp() * torch.tensor([1.0, 60.0, 4000.0, 20000.0])
        dense[:, 3] = 1.6e4 + 2000 * torch.randn(2560, generator=generator)
        score = taste[torch.arange(3), sparse].sum(1) + 1.5 * (dense[:, 1] / 60).log()
        label = torch.rand(2560, generator=generator) < (1.5 * score).sigmoid()
        if self.normalized:
            dense = (dense - dense.mean(0)) / dense.std(0)
        return {"sparse": sparse + torch.tensor([0, 10, 20]), "numeric": dense, "label": label.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        fields = torch.cat([self.embedding(batch["sparse"]), batch["numeric"][..., None] * self.numeric_embedding], 1)
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1)
        logit = self.linear(batch["numeric"])[:, 0] + pairs + self.deep(fields.flatten(1))[:, 0]
        return functional.binary_cross_entropy_with_logits(logit, batch["label"])

    def score(self) -> float:
        return float(self.loss(self.data()))
