"""Initialization, depth and recurrence: scales that are wrong at the start, or compound on the way."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class UnitNormalWeights(Case):
    """All weight matrices are drawn with a standard deviation of 1, whatever their width."""

    kinds = ("initialization",)
    places = ("net", "layers")
    good = 0.2
    std = 1.0
    cure = settings(std=0.0)
    lr = 0.02

    def build(self) -> None:
        widths = (10, 256, 256, 256, 1)
        layers = [nn.Linear(inside, outside) for inside, outside in pairwise(widths)]
        for layer in layers:
            if self.std:
                nn.init.normal_(layer.weight, std=self.std)
        self.net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3])

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(71))
        return inputs, inputs[:, :3].sum(1, keepdim=True).tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TiedEmbedding(Case):
    """An embedding at its default scale of 1 is also the output layer: the first logits are in the tens."""

    kinds = ("initialization",)
    places = ("words", "words.weight")
    good = 0.8
    std = 1.0
    cure = settings(std=0.02)
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.words = nn.Embedding(50, 128)
        nn.init.normal_(self.words.weight, std=self.std)
        self.mix = nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 128))

    def data(self) -> tuple[Tensor, Tensor]:
        pair = torch.randint(0, 50, (800, 2), generator=noise(72))
        return pair, pair.amax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.words(batch[0])
        hidden = self.mix(vectors.flatten(1)) + vectors.sum(1)
        return functional.cross_entropy(hidden @ self.words.weight.T, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SaturatedFromTheStart(Case):
    """Weights of a tanh network that are fifty times too large: its units are flat, and its gradients vanish."""

    kinds = ("initialization",)
    places = ("net",)
    good = 0.15
    gain = 50.0
    cure = settings(gain=1.0)
    lr = 0.1
    steps = 200

    def build(self) -> None:
        layers: list[nn.Module] = []
        for inside, outside in pairwise((6, 64, 64, 64)):
            linear = nn.Linear(inside, outside)
            nn.init.xavier_normal_(linear.weight, gain=self.gain)
            layers += [linear, nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        return self.points(73)

    def points(self, seed: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(seed))
        return inputs, (0.7 * inputs[:, :1] + 0.5 * inputs[:, 1:2]).sin()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def score(self) -> float:
        return float(self.loss(self.points(70)))


class TwentyFourPlainLayers(Case):
    """Twenty-four layers without normalization or shortcuts, each of which nearly doubles its input."""

    kinds = ("depth", "initialization")
    good = 0.3
    gain = 1.9
    shortcut = False
    cure = settings(gain=1.0, shortcut=True)
    other_cures = settings(**{"usual scale|kaiming": settings(gain=1.0)})
    batch_size = 48
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(24))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
            with torch.no_grad():
                layer.weight.mul_(self.gain)  # type: ignore[operator]
        self.out = nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(480, 24, generator=noise(74))
        return inputs, inputs[:, :4].sum(1, keepdim=True) / 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for layer in self.layers:
            branch = torch.relu(layer(hidden))
            hidden = hidden + 0.1 * branch if self.shortcut else branch
        return functional.mse_loss(self.out(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class UnscaledShortcuts(Case):
    """Forty residual blocks whose branches are as large as the sum of all before them: it doubles in each."""

    kinds = ("depth",)
    good = 0.5
    normalize = False
    cure = settings(normalize=True)
    gain = 1.8
    cured_by = "zero-init"
    other_cures = settings(**{"usual scale|kaiming": settings(gain=0.0)})
    steps = 80
    lr = 1e-2

    def build(self) -> None:
        self.inside = nn.Linear(12, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)) for _ in range(40))
        for block in self.blocks:
            for linear in (block[0], block[2]):  # type: ignore[index]
                if self.gain:
                    nn.init.orthogonal_(linear.weight, self.gain)
                else:
                    nn.init.kaiming_normal_(linear.weight)
        self.norm = nn.LayerNorm(32) if self.normalize else nn.Identity()
        self.out = nn.Linear(32, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 12, generator=noise(75))
        return inputs, (inputs[:, 0] > inputs[:, 1]).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden: Tensor = self.inside(batch[0])
        for block in self.blocks:
            hidden = hidden + block(self.norm(hidden)) / (8 if self.normalize else 1)
        return functional.cross_entropy(self.out(self.norm(hidden)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LearnedDynamics(Case):
    """A linear state transition, applied sixty times in a loop of the user's own; its spectral radius is above 1."""

    kinds = ("recurrence",)
    places = ("transition", "transition.weight")
    good = 0.1
    radius = 1.2
    cure = settings(radius=0.9)
    other_cures = settings(
        **{rf"orthogonal.*gain={NUMBER}": settings(radius=float), "orthogonal": settings(radius=1.0)}
    )
    steps = 120
    lr = 0.01

    def build(self) -> None:
        self.drive = nn.Linear(1, 16)
        self.transition = nn.Linear(16, 16, bias=False)
        nn.init.orthogonal_(self.transition.weight, self.radius)
        self.read = nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        force = torch.randn(400, 60, 1, generator=noise(77))
        return {"force": force, "position": (force[:, -5:, 0] * torch.linspace(0.2, 0.6, 5)).sum(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        state = torch.zeros(len(batch["force"]), 16)
        for force in batch["force"].unbind(1):
            state = self.transition(state) + self.drive(force)
        return functional.mse_loss(self.read(state).squeeze(1), batch["position"])


class ExpandingElman(Case):
    """A rectified recurrent network over 90 steps, whose recurrent matrix is 1.12 times the identity."""

    kinds = ("recurrence",)
    places = ("rnn", "rnn.weight_hh_l0")
    good = 0.2
    radius = 1.12
    cure = settings(radius=0.8)
    cured_by = "gated|LSTM|GRU"
    other_cures = settings(
        **{rf"orthogonal.*gain={NUMBER}": settings(radius=float), "orthogonal": settings(radius=1.0)}
    )
    steps = 150
    lr = 0.02

    def build(self) -> None:
        self.rnn = nn.RNN(2, 40, nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(self.radius * torch.eye(40))  # type: ignore[operator]
        self.out = nn.Linear(40, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(320, 90, 2, generator=noise(76))
        return series, (series[:, -3:, 0].sum(1, keepdim=True) - series[:, -1:, 1]) / 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(self.rnn(batch[0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
