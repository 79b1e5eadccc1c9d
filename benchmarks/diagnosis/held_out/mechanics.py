"""Motion, fields, filters and graphs: learned simulators and networks of the shape of a problem."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class IsolatedNode(Case):
    """Adjacency matrices are divided by the root of their degrees, and one graph has a node without an edge."""

    kinds = ("nonfinite-input",)
    places = ("adjacency",)
    rows = (13, 173)
    good = 0.6
    self_loops = 0.0
    cure = settings(self_loops=1.0)
    cured_by = "self.loop|eye|clamp"
    shuffle = False
    batch_size = 20
    lr = 0.02

    def build(self) -> None:
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 16)
        self.readout = nn.Linear(16, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(130)
        label = torch.randint(0, 2, (400,), generator=random)
        edges = (torch.rand(400, 7, 7, generator=random) < 0.6).float().triu(1)
        ring = torch.eye(7).roll(1, 1)
        adjacency = ((edges + edges.transpose(1, 2) + ring + ring.T) > 0).float()
        adjacency[173, 2], adjacency[173, :, 2] = 0.0, 0.0
        adjacency = adjacency + self.self_loops * torch.eye(7)
        root = adjacency.sum(1).pow(-0.5)
        nodes = torch.randn(400, 7, 4, generator=random) + 0.6 * label[:, None, None]
        return {"nodes": nodes, "adjacency": root[:, :, None] * adjacency * root[:, None, :], "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = functional.relu(batch["adjacency"] @ self.first(batch["nodes"]))
        hidden = functional.relu(batch["adjacency"] @ self.second(hidden))
        return functional.cross_entropy(self.readout(hidden.mean(1)), batch["label"])


class DirectionAtRest(Case):
    """The direction of a velocity is it over its norm, and some cars stand."""

    kinds = ("undefined-operation",)
    places = ("div", "norm", "linalg_vector_norm")
    good = 0.1
    least = 0.0
    cure = settings(least=1e-6)
    batch_size = 30
    lr = 0.01

    def build(self) -> None:
        self.steer = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(131)
        controls = torch.randn(600, 3, generator=random)
        speed = torch.rand(600, generator=random) + 0.5
        speed[40::97] = 0.0
        heading = controls[:, 0].tanh()
        return {"controls": controls, "speed": speed, "direction": torch.stack([heading.cos(), heading.sin()], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        velocity = batch["speed"][:, None] * (self.steer(batch["controls"]) + torch.tensor([1.0, 0.0]))
        direction = velocity / velocity.norm(dim=1, keepdim=True).clamp(min=self.least)  # fault
        return functional.smooth_l1_loss(direction, batch["direction"])

    def score(self) -> float:
        data = self.clean()
        direction = functional.normalize(self.steer(data["controls"]) + torch.tensor([1.0, 0.0]), dim=1)
        return float(functional.smooth_l1_loss(direction, data["direction"]))


class FieldAtTheOrigin(Case):
    """A potential learned from its slope, with one over the distance as an input: a tanh hides its infinity."""

    kinds = ("undefined-operation",)
    places = ("reciprocal", "div", "tanh")
    good = 0.3
    soften = 0.0
    cure = settings(soften=0.3)
    cured_by = r"soften|\beps|add"
    batch_size = 49
    steps = 250
    lr = 0.01

    def build(self) -> None:
        self.potential = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        axis = torch.arange(-10, 11) / 10
        return (torch.cartesian_prod(axis, axis),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        with torch.enable_grad():
            points = batch[0].clone().requires_grad_(True)
            nearness = 1 / (points.norm(dim=1, keepdim=True) + self.soften)  # fault
            value = self.potential(torch.cat([points, nearness], 1))
            (force,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        return (force - 2 * batch[0]).square().mean() + value.mean().square()

    def score(self) -> float:
        points = self.clean()[0]
        return float(self.loss((points[points.norm(dim=1) > 0.05],)))


class PoleOutside(Case):
    """A recursive filter with a learned feedback coefficient of 1.06, over 200 samples."""

    kinds = ("recurrence",)
    places = ("feedback",)
    good = 0.05
    start = 1.06
    cure = settings(start=0.5)
    cured_by = "clamp|tanh|sigmoid|below 1|bound"
    steps = 80
    lr = 0.01
    batch_size = 16

    def build(self) -> None:
        self.feedback = nn.Parameter(torch.tensor(self.start))
        self.gain = nn.Parameter(torch.tensor(1.0))

    def data(self) -> tuple[Tensor, Tensor]:
        sound = torch.randn(160, 200, generator=noise(132))
        return sound, self.filtered(sound, torch.tensor(0.7), torch.tensor(0.5)).detach()

    def filtered(self, sound: Tensor, feedback: Tensor, gain: Tensor) -> Tensor:
        samples, last = [], torch.zeros(len(sound))
        for sample in sound.unbind(1):
            last = gain * sample + feedback * last
            samples.append(last)
        return torch.stack(samples, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.filtered(batch[0], self.feedback, self.gain), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LongRollout(Case):
    """A learned simulator is trained through 70 of its own steps, each of which amplifies its state."""

    kinds = ("recurrence",)
    places = ("step", "step.0", "step.2")
    good = 0.2
    horizon = 70
    cure = settings(horizon=8)
    gain = 1.3
    cured_by = "fewer|detach"
    other_cures = settings(**{rf"orthogonal.*gain={NUMBER}": settings(gain=float), "orthogonal": settings(gain=1.0)})
    steps = 100
    lr = 3e-3

    def build(self) -> None:
        self.step = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4))
        nn.init.orthogonal_(self.step[0].weight, self.gain)  # type: ignore[arg-type]
        nn.init.orthogonal_(self.step[2].weight, self.gain)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        state = torch.randn(300, 4, generator=noise(133))
        turn = torch.zeros(4, 4)
        turn[:2, :2] = turn[2:, 2:] = torch.tensor([[0.99875, -0.04998], [0.04998, 0.99875]])
        path = [state]
        for _ in range(self.horizon):
            path.append(path[-1] @ turn.T)
        return state, torch.stack(path[1:], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        state, errors = batch[0], []
        for truth in batch[1].unbind(1):
            state = state + self.step(state)
            errors.append(functional.mse_loss(state, truth))
        return torch.stack(errors).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr * 10)


class BlowUpInFiniteTime(Case):
    """Growth proportional to the square of a population: the solution of the equation ends before the last step."""

    kinds = ("forward-overflow", "recurrence")
    places = ("pow", "mul", "square", "growth")
    good = 0.1
    saturating = False
    cure = settings(saturating=True)
    most = float("inf")
    cured_by = "saturat"
    other_cures = settings(
        **{r"bound the argument|clamp\(max": settings(most=20.0), "normali|near one": settings(most=float("inf"))}
    )
    steps = 200
    lr = 0.02

    def build(self) -> None:
        self.growth = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1), nn.Softplus())

    def data(self) -> dict[str, Tensor]:
        random = noise(134)
        place, population = torch.rand(400, 2, generator=random), 1 + torch.rand(400, generator=random)
        return {"place": place, "population": population, "later": population * (1 + place[:, 0])}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        rate, population = self.growth(batch["place"]).squeeze(1), batch["population"]
        for _ in range(40):
            increase = population.clamp(max=self.most).square()  # fault
            if self.saturating:
                increase = increase / (1 + increase)
            population = population + 0.1 * rate * increase
        return functional.mse_loss(population, batch["later"])


class MultiplicativeGates(Case):
    """Thirty layers, each of which multiplies its input by one plus a function of it."""

    kinds = ("depth", "forward-overflow")
    good = 0.3
    strength = 1.0
    cure = settings(strength=0.02)
    cured_by = "smaller"
    steps = 120
    lr = 5e-3

    def build(self) -> None:
        self.inside = nn.Linear(6, 16)
        self.gates = nn.ModuleList(nn.Linear(16, 16) for _ in range(30))
        self.outside = nn.Linear(16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(480, 6, generator=noise(135))
        return inputs, (inputs[:, :1] + inputs[:, 1:2]) / 1.5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.inside(batch[0])
        for gate in self.gates:
            hidden = hidden * (1 + self.strength * functional.softplus(gate(hidden)))
        return functional.mse_loss(self.outside(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class StackedSums(Case):
    """Sixteen graph layers that add up all neighbours: each multiplies by the number of neighbours."""

    kinds = ("depth",)
    places = ("layers",)
    good = 0.6
    mean = False
    cure = settings(mean=True)
    cured_by = r"\bmean\b|degree"
    steps = 200
    lr = 0.05

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(16))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
        self.readout = nn.Linear(8, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(136)
        edges = (torch.rand(300, 10, 10, generator=random) < 0.5).float().triu(1)
        nodes = torch.randn(300, 10, 8, generator=random) / 2 + 2 * torch.rand(300, 1, 8, generator=random) - 1
        return {"nodes": nodes, "edges": edges + edges.transpose(1, 2), "energy": nodes.mean((1, 2)) * 8}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, edges = batch["nodes"], batch["edges"]
        if self.mean:
            edges = edges / edges.sum(2, keepdim=True).clamp(min=1)
        for layer in self.layers:
            hidden = functional.leaky_relu(
                layer(edges @ hidden) if not self.mean else hidden + 0.2 * layer(edges @ hidden), 0.5
            )
        return functional.mse_loss(self.readout(hidden.mean(1)).squeeze(1), batch["energy"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class UniformBilinear(Case):
    """A bilinear form of the user's own, drawn uniformly from 0 to 1 by torch.rand."""

    kinds = ("initialization",)
    places = ("bilinear",)
    good = 0.1
    centred = False
    cure = settings(centred=True)
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.left, self.right = nn.Linear(5, 64), nn.Linear(5, 64)
        form = torch.rand(64, 64)
        self.bilinear = nn.Parameter((form - 0.5) / math.sqrt(64) if self.centred else form)

    def data(self) -> dict[str, Tensor]:
        random = noise(137)
        first, second = torch.rand(2, 500, 5, generator=random)
        return {"first": first, "second": second, "likeness": (first * second).sum(1) - 1.25}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        left, right = self.left(batch["first"]).relu(), self.right(batch["second"]).relu()
        return functional.mse_loss(((left @ self.bilinear) * right).sum(1), batch["likeness"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MetresOnTheMap(Case):
    """Coordinates of a map in metres, some 500,000 east and 5,300,000 north, into a network."""

    kinds = ("unscaled-data",)
    places = ("[0]",)
    good = 0.4
    metres = True
    cure = settings(metres=False)
    steps = 250
    lr = 3e-3

    def build(self) -> None:
        self.height = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        position = 2 * torch.rand(800, 2, generator=noise(138)) - 1
        height = (2 * position[:, :1]).sin() * (2 * position[:, 1:]).cos() * 1.5
        return torch.tensor([5e5, 5.3e6]) + 2e4 * position if self.metres else position, height

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.height(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(self.data()))


class ChaoticReservoir(Case):
    """A tanh recurrent network with recurrent weights five times too large, over 100 steps."""

    kinds = ("recurrence", "initialization")
    places = ("cell", "cell.weight_hh")
    good = 0.3
    gain = 5.0
    cure = settings(gain=0.8)
    cured_by = "gated|LSTM|GRU"
    other_cures = settings(**{rf"orthogonal.*gain={NUMBER}": settings(gain=float), "orthogonal": settings(gain=1.0)})
    steps = 100
    lr = 0.05

    def build(self) -> None:
        self.cell = nn.RNNCell(1, 32)
        nn.init.orthogonal_(self.cell.weight_hh, self.gain)
        self.out = nn.Linear(32, 1)

    def data(self) -> dict[str, Tensor]:
        wave = torch.randn(256, 100, 1, generator=noise(139))
        return {"wave": wave, "level": wave[:, -4:, 0].mean(1) * 2}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        state = torch.zeros(len(batch["wave"]), 32)
        for sample in batch["wave"].unbind(1):
            state = self.cell(sample, state)
        return functional.mse_loss(self.out(state).squeeze(1), batch["level"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
