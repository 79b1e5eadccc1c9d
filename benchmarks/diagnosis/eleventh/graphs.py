"""Points in space, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Equivariant(nn.Module):
    """Points move along the lines between them, by weights of their distances.

    Args:
        width: Number of features.
        deviation: Deviation of the initial weights, None for those of PyTorch.
    """

    def __init__(self, width: int, deviation: float | None) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * width + 1, 4 * width), nn.SiLU(), nn.Linear(4 * width, 16), nn.SiLU())
        self.move = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 1))
        self.node = nn.Sequential(nn.Linear(width + 16, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and deviation is not None:
                nn.init.normal_(layer.weight, std=deviation)

    def forward(self, features: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the points after the layer."""
        lines = points[:, :, None] - points[:, None]
        far = lines.square().sum(3, keepdim=True)
        own = features[:, :, None].expand(-1, -1, features.shape[1], -1)
        edges = self.edge(torch.cat([own, own.transpose(1, 2), far], 3))
        points = points + (self.move(edges) * lines).sum(2)
        return features + self.node(torch.cat([features, edges.sum(2)], 2)), points


class StackedPoints(Case):
    """Places of bodies a while later from seven layers, each of which moves points by unbounded sums of lines.

    Report: github.com/lucidrains/egnn-pytorch/issues/9, the second result of "deep graph neural network many layers
    exploding activations nan fixed normalization". Confirmed: the initial weights; with small ones, depth is
    no problem.
    """

    kinds = ("depth", "initialization")
    good = 0.3
    deviation: float | None = None
    cure = settings(deviation=1e-3)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "smaller|small init|initial"
    batch_size = 16
    lr = 1e-3
    steps = 120

    def build(self) -> None:
        self.layers = nn.ModuleList(Equivariant(4, self.deviation) for _ in range(7))

    def data(self) -> dict[str, Tensor]:
        random = noise(11801)
        points = torch.randn(320, 12, 3, generator=random) * 1.5
        charge = torch.randint(2, (320, 12, 1), generator=random).float() * 2 - 1
        lines = points[:, :, None] - points[:, None]
        push = (charge[:, :, None] * charge[:, None] * lines / (lines.square().sum(3, keepdim=True) + 1)).sum(2)
        return {"points": points, "charge": charge, "later": points + 0.3 * push}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features, points = functional.pad(batch["charge"], (0, 3)), batch["points"]
        for layer in self.layers:
            features, points = layer(features, points)
        return functional.mse_loss(points, batch["later"])
