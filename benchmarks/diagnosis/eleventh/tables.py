"""Prices in tables, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PricesOfHouses(Case):
    """Prices of houses up to seven hundred thousand, by squared errors and plain descent from standardized features.

    Report: github.com/rstudio-conf-2020/dl-keras-tf/issues/9, the first result of "regression neural network loss huge
    values then nan, scaling targets fixed it". Confirmed: the range of the prices, whose squared errors explode; the
    squared error of their logarithms was meant.
    """

    kinds = ("unscaled-data",)
    places = ("price",)
    good = 6.0
    of_logarithms = False
    cure = settings(of_logarithms=True)
    cured_by = "log|scale|standard|normal|divide"
    batch_size = 16
    lr = 0.1
    steps = 600

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(11601)
        features = torch.randn(1640, 24, generator=random)
        sizes = torch.linspace(0.25, 0.0, 24)
        logarithm = 12.0 + features @ sizes / 2 + 0.1 * torch.randn(1640, generator=random)
        return {"features": features, "price": logarithm.exp().clamp(max=755_000.0)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        price, found = batch["price"], self.net(batch["features"])[:, 0]
        if self.of_logarithms:
            found, price = found.clamp(min=1e-7).log1p(), price.log1p()
        return functional.mse_loss(found, price)

    def score(self) -> float:
        rows = self.clean()
        found = self.net(rows["features"])[:, 0].clamp(min=1e-7)
        return float(functional.mse_loss(found.log1p(), rows["price"].log1p()))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
