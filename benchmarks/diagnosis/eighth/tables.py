"""Tables and graphs, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class AloneInTheGraph(Case):
    """Classes of the vertices of one graph by the means of their neighbours; two vertices have none."""

    # github.com/MrLeeeee/GCN-GAT-and-Graphsage/issues/3
    kinds = ("undefined-operation",)
    places = ("div",)
    host = "plain"
    good = 0.5
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"clamp|\beps"
    batch_size = 1
    steps = 100

    def build(self) -> None:
        self.first, self.second = nn.Linear(20, 24), nn.Linear(48, 3)

    def data(self) -> dict[str, Tensor]:
        random = noise(8201)
        kind = torch.randint(0, 3, (60,), generator=random)
        features = torch.randn(60, 10, generator=random) + functional.one_hot(kind, 10)
        linked = torch.rand(60, 60, generator=random) < 0.02 + 0.2 * (kind[:, None] == kind)
        adjacent = (linked | linked.T).float().fill_diagonal_(0)
        adjacent[[17, 43]] = 0.0
        adjacent[:, [17, 43]] = 0.0
        return {"features": features[None], "adjacency": adjacent[None], "kind": kind[None]}

    def around(self, values: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1, keepdim=True).clamp(min=self.least)
        return torch.cat([values, adjacency @ values / degree], -1)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.first(self.around(batch["features"], batch["adjacency"])).relu()
        scores = self.second(self.around(hidden, batch["adjacency"]))
        return functional.cross_entropy(scores[0], batch["kind"][0])


class LatentsOfScans(Case):
    """Diffusion on latents that were computed beforehand; those of some scans are not numbers."""

    # github.com/wongzbb/DiffMa-Diffusion-Mamba/issues/18
    kinds = ("nonfinite-input",)
    places = ("[latent]", "latent")
    good = 0.6
    fill = float("nan")
    cure = settings(fill=0.0)
    lr = 3e-3
    batch_size = 16
    rows = (13, 90, 91, 244)

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(5, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 4, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        random = noise(8202)
        latent = torch.randn(320, 4, 1, 1, generator=random) + 0.1 * torch.randn(320, 4, 6, 6, generator=random)
        latent[[90, 91, 244], :, 2:4] = self.fill
        return {"latent": latent, "level": torch.rand(320, 1, 1, 1, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        latent, level = batch["latent"], batch["level"]
        added = torch.randn_like(latent)
        noisy = level.sqrt() * added + (1 - level).sqrt() * latent
        return functional.mse_loss(self.net(torch.cat([noisy, level.expand(-1, 1, 6, 6)], 1)), added)

    def score(self) -> float:
        torch.manual_seed(0)
        return super().score()


class CubicOfThousands(Case):
    """A cubic polynomial for arguments from minus a thousand to a thousand, fitted as the table holds them."""

    # qa.1r1g.com/sf/ask/4433342651 (Stack Overflow), a question on normalization in regression
    kinds = ("unscaled-data",)
    places = ("target of mse_loss", "input of linear")
    host = "plain"
    good = 0.06
    is_scaled = False
    cure = settings(is_scaled=True)
    batch_size = 80
    lr = 0.1

    def build(self) -> None:
        self.linear = nn.Linear(1, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        x = 2000 * torch.rand(80, 1, generator=noise(8203)) - 1000
        y = 2 * x**3 + 7 * x**2 - 8 * x + 120
        return (x / 1000, y / 2e9) if self.is_scaled else (x, y)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
