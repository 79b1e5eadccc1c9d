"""Tables, sensors and small classifiers, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class EpsilonOfSingles(Case):
    """A classifier in float16 whose probabilities are kept from zero and one by the small number of float32.

    Report: github.com/tensorflow/tensorflow/issues/38457 and keras-team/keras/issues/9582. Confirmed by readers: with
    float16 the loss is NaN at random with the small number of 1e-7, and with 1e-3 it is not.
    """

    kinds = ("half-precision", "undefined-operation")
    places = ("log",)
    host = "plain"
    good = 0.1
    eps = 1e-7
    cure = settings(eps=1e-3)
    cured_by = r"float32|\beps|logits"
    batch_size = 8
    lr = 0.1
    steps = 390

    def build(self) -> None:
        self.dense1, self.dense2 = nn.Linear(6, 16).half(), nn.Linear(16, 1).half()

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(512, 6, generator=noise(15501))
        return x, (x[:, 0] + x[:, 1] > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        y_pred = self.dense2(self.dense1(batch[0].half()).tanh())[:, 0].sigmoid()
        y_true = batch[1].half()
        y_pred = y_pred.clamp(self.eps, 1 - self.eps)
        bce = y_true * torch.log(y_pred) + (1 - y_true) * torch.log(1 - y_pred)  # fault
        return -bce.float().mean()

    def score(self) -> float:
        x, y = self.clean()
        logits = self.dense2(self.dense1(x.half()).tanh())[:, 0]
        return float(((logits > 0).float() != y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class UnusedRows(Case):
    """Sets of up to six sensors; missing ones are filled with NaN, and are left out after the first layer.

    Report: discuss.pytorch.org/t/gradients-contaminated-by-unused-inputs/135053. Confirmed: the loss does not depend on
    the rows that are left out, but the gradient of the layer does: zero times NaN is NaN.
    """

    kinds = ("nonfinite-input",)
    places = ("readings",)
    host = "plain"
    good = 0.12
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\bfill|nan_to_num|zero"
    batch_size = 32
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encoder = nn.Linear(5, 48)
        self.regressor = nn.Sequential(nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(15502)
        readings = torch.randn(768, 6, 5, generator=generator)
        present = torch.arange(6) < torch.randint(2, 7, (768, 1), generator=generator)
        value = (readings[..., 0] * readings[..., 1].sigmoid() * present).sum(1) / present.sum(1)
        return {"readings": readings.masked_fill(~present[..., None], torch.nan), "present": present, "value": value}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        readings = batch["readings"].nan_to_num(0.0) if self.fills else batch["readings"]
        hidden = self.encoder(readings)
        owner, _ = batch["present"].nonzero(as_tuple=True)
        each = self.regressor(hidden[batch["present"]])[:, 0]
        total = torch.zeros(len(readings)).index_add(0, owner, each)
        predicted = total / batch["present"].sum(1)
        return functional.mse_loss(predicted, batch["value"]) / 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ReadWithoutOptimizer(Case):
    """A classifier by descent with momentum and a rate that falls in steps, interrupted and resumed late.

    Report: github.com/IntelLabs/distiller/issues/145. Confirmed by the reporter: the resumed training begins at the
    initial rate again, since the checkpoint is read without the optimizer.
    """

    kinds = ("learning-rate-jump",)
    host = "plain"
    good = 0.09
    loads_optimizer = False
    cure = settings(loads_optimizer=True)
    cured_by = r"load|restore|state_dict|checkpoint"
    batch_size = 32
    lr = 0.6
    steps = 390

    def build(self) -> None:
        self.features = nn.Sequential(
            nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.classifier = nn.Linear(64, 6)
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(15503)
        label = torch.randint(6, (1024,), generator=generator)
        x = torch.randn(6, 24, generator=generator)[label] + 1.3 * torch.randn(1024, 24, generator=generator)
        return x, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.classifier(self.features(batch[0])), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if self.taken in (120, 220):
            optimizer.param_groups[0]["lr"] *= 0.1
        if self.taken == 330 and not self.loads_optimizer:
            optimizer.param_groups[0]["lr"] = self.lr
            optimizer.state.clear()
        self.taken += 1
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class OneOrderOfMagnitude(Case):
    """Energy of buildings from raw measurements by plain descent at a rate of a thousandth.

    Report: datascience.stackexchange.com/questions/15962. Confirmed by the reporter: the loss rises from thousands to
    a trillion within an epoch; with a tenth of the rate everything works.
    """

    kinds = ("learning-rate", "unscaled-data")
    host = "plain"
    good = 40.0
    lr = 1e-3
    cure = settings(lr=1e-4)
    batch_size = 32
    steps = 390

    def build(self) -> None:
        self.hidden, self.output = nn.Linear(6, 32), nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(15504)
        x = torch.rand(1024, 6, generator=generator) * torch.tensor([45.0, 36.0, 15.0, 8.0, 1.0, 1.0])
        return x, 2 * x[:, 0] + 0.1 * x[:, 1] * x[:, 2] + 3 * torch.randn(1024, generator=generator)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.output(self.hidden(batch[0]).relu())[:, 0], batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PricesAsProbabilities(Case):
    """Prices of houses by a network whose loss is the one of the tutorial that it follows, for two classes.

    Report: openillumi.com/en/en-keras-tf-fix-huge-negative-loss-regression, after a question on Stack Overflow.
    Confirmed: a binary cross-entropy of prices falls far below zero; the squared error is taken.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("price",)
    good = 0.3
    regression = False
    cure = settings(regression=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\bMSE|mse_loss|squared|regression"
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(15505)
        house = torch.randn(1024, 8, generator=generator)
        price = 4 + house[:, 0] + 0.5 * house[:, 1] * house[:, 2] + 0.2 * torch.randn(1024, generator=generator)
        return {"house": house, "price": price.clamp(min=0.5)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.net(batch["house"])[:, 0]
        if self.regression:
            return functional.mse_loss(output, batch["price"])
        return functional.binary_cross_entropy_with_logits(output, batch["price"])

    def score(self) -> float:
        data = self.clean()
        return float(functional.mse_loss(self.net(data["house"])[:, 0], data["price"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
