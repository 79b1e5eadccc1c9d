"""Networks on graphs, sets, point clouds and physics: message passing, pooling over neighbours, equations."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


def graphs(seed: int, count: int, size: int, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return features of the nodes and symmetric adjacency matrices with a loop at each node."""
    random = noise(seed)
    edges = (torch.rand(count, size, size, generator=random) < share).float()
    edges = torch.maximum(edges, edges.transpose(1, 2))
    edges.diagonal(dim1=1, dim2=2).fill_(1.0)
    return torch.randn(count, size, 4, generator=random), edges


class EmptyNeighbourhood(Case):
    """A mean over the neighbours within a radius; in some clouds a point has none."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "neighbours", "count")
    good = 0.1
    least = 0.0
    cure = settings(least=1.0)
    batch_size = 20
    steps = 150

    def build(self) -> None:
        self.point, self.out = nn.Linear(3, 32), nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        cloud = torch.rand(400, 12, 3, generator=noise(202))
        cloud[::31, 0] += 4.0
        return cloud, cloud.std(1).mean(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        cloud, target = batch
        near = (torch.cdist(cloud, cloud) < 0.7) & ~torch.eye(12, dtype=torch.bool)
        hidden = torch.relu(self.point(cloud))
        count = near.sum(-1, keepdim=True).clamp(min=self.least)
        neighbours = (near.float() @ hidden) / count  # fault
        return functional.mse_loss(self.out(torch.cat([hidden, neighbours], -1).mean(1)), target)

    def score(self) -> float:
        cloud, target = self.clean()
        return float(self.loss((cloud[1:30], target[1:30])))


class SummedNeighbours(Case):
    """Twelve rounds of message passing that add up some five neighbours each, without a division by the degree."""

    kinds = ("depth",)
    good = 0.3
    average = False
    cure = settings(average=True)
    cured_by = "degree|residual|LayerNorm|normali"
    lr = 0.01
    steps = 120

    def build(self) -> None:
        self.inside = nn.Linear(4, 24)
        self.rounds = nn.ModuleList(nn.Linear(24, 24) for _ in range(12))
        for one in self.rounds:
            nn.init.orthogonal_(one.weight)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(24) if self.average else nn.Identity()
        self.out = nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        nodes, edges = graphs(203, 320, 9)
        return {"nodes": nodes, "edges": edges, "charge": nodes[..., 0].mean(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        edges = batch["edges"]
        if self.average:
            edges = edges / edges.sum(2, keepdim=True)
        hidden = self.inside(batch["nodes"])
        for one in self.rounds:
            step = torch.relu(one(edges @ hidden))
            hidden = self.norm(hidden + step) if self.average else step
        return functional.mse_loss(self.out(hidden.mean(1)).squeeze(1), batch["charge"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SharedMessagePassing(Case):
    """One layer of message passing with shared weights is applied forty times, and its matrix expands."""

    kinds = ("recurrence",)
    places = ("message", "message.weight")
    good = 0.4
    radius = 1.35
    cure = settings(radius=0.8)
    other_cures = settings(
        **{rf"orthogonal.*gain={NUMBER}": settings(radius=float), "orthogonal": settings(radius=1.0)}
    )
    lr = 0.02
    steps = 120

    def build(self) -> None:
        self.inside, self.out = nn.Linear(4, 16), nn.Linear(16, 1)
        self.message = nn.Linear(16, 16, bias=False)
        nn.init.orthogonal_(self.message.weight, self.radius)

    def data(self) -> dict[str, Tensor]:
        nodes, edges = graphs(204, 320, 8)
        return {"nodes": nodes, "flow": edges / edges.sum(2, keepdim=True), "charge": nodes[..., :2].mean((1, 2))}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first = self.inside(batch["nodes"])
        hidden = first
        for _ in range(40):
            hidden = self.message(batch["flow"] @ hidden) + 0.2 * first
        return functional.mse_loss(self.out(hidden.mean(1)).squeeze(1), batch["charge"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class HubOfTheGraph(Case):
    """In one graph the weight of one edge was stored in other units: a hundred thousand times the others."""

    kinds = ("outlier-batch",)
    places = ("edges",)
    good = 0.2
    factor = 1e5
    cure = settings(factor=1.0)
    shuffle = False
    batch_size = 20
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.first, self.out = nn.Linear(4, 24), nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        nodes, edges = graphs(205, 3200, 6)
        edges[1005, 2, 4] = 1.0
        target = (edges @ nodes[..., :2]).mean((1, 2)).tanh()
        edges[1005, 2, 4] *= self.factor
        return {"nodes": nodes, "edges": edges / 6, "target": target}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.relu(batch["edges"] @ self.first(batch["nodes"]))
        return functional.mse_loss(self.out(hidden.sum(1)).squeeze(1), batch["target"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SquareRootOfDepth(Case):
    """An equation of shallow water: the speed is the root of a depth that the network predicts below zero."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.05
    least = -1e9
    cure = settings(least=1e-4)
    steps = 300
    lr = 5e-3

    def build(self) -> None:
        self.field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        place = 2 * torch.rand(512, 2, generator=noise(206)) - 1
        height = 0.1 + place[:, :1].square()
        return place, torch.cat([height, height.sqrt()], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        place, truth = batch
        height, speed = self.field(place).chunk(2, 1)
        wave = torch.sqrt(height.clamp(min=self.least))  # fault
        return functional.mse_loss(torch.cat([height, wave + 0 * speed], 1), truth)


class OddsOfAHundred(Case):
    """The likelihood of which of 150 parts are there: a product over all parts, whose logarithm is taken afterwards."""

    kinds = ("forward-overflow",)
    places = ("prod",)
    good = 95.0
    stable = False
    cure = settings(stable=True)
    cured_by = "logarithm|softplus"
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.score_of = nn.Linear(10, 150)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(207)
        state = torch.randn(512, 10, generator=random)
        return state, (state @ torch.randn(10, 150, generator=random) > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores = self.score_of(batch[0])
        if self.stable:
            total = functional.softplus(scores).sum(1)
        else:
            total = torch.log(torch.prod(1 + torch.exp(scores), dim=1))  # fault
        return (total - (scores * batch[1]).sum(1)).mean()


class EulerSteps(Case):
    """A differential equation whose right-hand side is a matrix parameter; 150 Euler steps, and it grows."""

    kinds = ("recurrence",)
    places = ("drift",)
    good = 0.3
    growth = 2.0
    cure = settings(growth=-0.5)
    cured_by = r"RecurrentBound|shorter"
    other_cures = settings(**{r"start it near zero": settings(growth=0.0)})
    steps = 120
    lr = 0.01

    def build(self) -> None:
        start = torch.eye(8) * self.growth + 0.1 * torch.randn(8, 8, generator=noise(20))
        self.drift = nn.Parameter(start)
        self.lift, self.out = nn.Linear(3, 8), nn.Linear(8, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        state = torch.randn(480, 3, generator=noise(208))
        return state, 0.3 * state.roll(1, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        state = self.lift(batch[0])
        for _ in range(150):
            state = state + 0.1 * (state @ self.drift)
        return functional.mse_loss(self.out(state), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
