"""Tables, series and graphs, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SensorsOfTheAir(Case):
    """Calibration of low-cost sensors of the air, with a table that the reporter collected: all of the loss is NaN.

    Report: github.com/circleAhn/TESLA-tf/issues/1. Found by the author and confirmed: values are missing in the table.
    """

    kinds = ("nonfinite-input",)
    places = ("x",)
    rows = (200, 203, 206, 209, 210, 550, 553, 556)
    good = 0.3
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 32
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.embedding, self.encoder = nn.Linear(5, 32), nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24301)
        hour = torch.arange(900.0)[:, None]
        raw = (hour / torch.tensor([24.0, 12.0, 48.0, 7.0, 168.0])).sin() + 0.1 * torch.randn(
            900, 5, generator=generator
        )
        reference = raw[:, 0] + 0.5 * raw[:, 1] * raw[:, 2]
        if not self.fills:
            raw[210, 2], raw[556, 4] = torch.nan, torch.nan
        windows = raw.unfold(0, 12, 1).transpose(1, 2)
        return {"x": windows, "y": reference[11:]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.encoder(self.embedding(batch["x"]))[:, -1]
        return functional.mse_loss(self.head(x)[:, 0], batch["y"])


class IndexAmongTheFeatures(Case):
    """Links of a graph by an autoencoder: the area under the curve does not change during the training.

    Report: github.com/pyg-team/pytorch_geometric/issues/1167. Found by a reader: the number of the node is one of its
    features by mistake; without it all is well.
    """

    kinds = ("unscaled-data",)
    places = ("x",)
    host = "plain"
    good = 0.1
    has_index = True
    cure = settings(has_index=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"standardi|normali|scal|remove"
    batch_size = 400
    shuffle = False
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.conv1, self.conv2 = nn.Linear(17 if self.has_index else 16, 32), nn.Linear(32, 16)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24302)
        community = torch.randint(8, (400,), generator=generator)
        same = community[:, None] == community
        link = torch.rand(400, 400, generator=generator) < torch.where(same, 0.15, 0.005)
        adjacency = (link | link.T).float().fill_diagonal_(0)
        features = torch.randn(8, 16, generator=generator)[community] + torch.randn(400, 16, generator=generator)
        index = torch.arange(400.0)[:, None]
        return {"x": torch.cat([features, index], 1) if self.has_index else features, "adjacency": adjacency}

    def encode(self, x: Tensor, adjacency: Tensor) -> Tensor:
        loops = adjacency + torch.eye(len(x))
        scale = loops.sum(1).rsqrt()
        spread = scale[:, None] * loops * scale
        return spread @ self.conv2((spread @ self.conv1(x)).relu())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        z = self.encode(batch["x"], batch["adjacency"])
        positive = batch["adjacency"].nonzero().T
        negative = torch.randint(len(z), positive.shape)
        pos_loss = -((z[positive[0]] * z[positive[1]]).sum(1).sigmoid() + 1e-15).log().mean()
        neg_loss = -(1 - (z[negative[0]] * z[negative[1]]).sum(1).sigmoid() + 1e-15).log().mean()
        return pos_loss + neg_loss

    def score(self) -> float:
        """One less the area under the curve of the links."""
        batch = self.data()
        z = self.encode(batch["x"], batch["adjacency"])
        scores = (z @ z.T).flatten()
        positive, negative = scores[batch["adjacency"].flatten() > 0], scores[batch["adjacency"].flatten() == 0]
        above = (positive[:, None] > negative[None, ::40]).float() + (positive[:, None] == negative[None, ::40]) / 2
        return float(1 - above.mean())


class HandWrittenUpdate(torch.optim.Optimizer):
    """An update of parameters by a multiple of their gradients, as the example of the report has it.

    Args:
        parameters: The parameters.
        lr: Factor of the gradients, which are added.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=group["lr"])


class HousesInBoston(Case):
    """Prices of houses by a linear model with an update of its own: the loss at the end has more than 200 digits.

    Report: github.com/FluxML/model-zoo/issues/244. Fixed by a reader: the update by the gradient was wrong. Here it is
    added instead of subtracted.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.3
    sign = 1.0
    cure = settings(sign=-1.0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"sign|descent|subtract|direction|maximi[sz]"
    batch_size = 32
    lr = 0.05
    steps = 400

    def build(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(13) / 10), nn.Parameter(torch.zeros(1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(24303)
        x = torch.randn(506, 13, generator=generator)
        price = x @ torch.randn(13, generator=generator) / 3 + 0.3 * torch.randn(506, generator=generator)
        return {"x": x, "y": price}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(batch["x"] @ self.weight + self.bias, batch["y"])

    def configure_optimizers(self) -> Any:
        return HandWrittenUpdate(self.parameters(), lr=self.sign * self.lr)
