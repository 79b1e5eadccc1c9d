"""Networks that explode by their initial weights, their depth or their loops over time, in the manner of reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class ExpertsOfNormalNumbers(GradientDescent, Case):
    """A mixture of experts, whose matrices are one parameter of three dimensions drawn by torch.randn."""

    kinds = ("initialization",)
    places = ("first", "second", "experts")
    good = 0.6
    scale = 1.0
    cure = settings(scale=0.1)
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.gate = nn.Linear(24, 4)
        self.first = nn.Parameter(self.scale * torch.randn(4, 24, 64))
        self.second = nn.Parameter(self.scale * torch.randn(4, 64, 64))
        self.head = nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 24, generator=noise(421))
        return inputs, inputs[:, :1] + inputs[:, 1:2].relu()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.einsum("bi,eij->bej", batch[0], self.first).relu()
        hidden = torch.einsum("bej,ejk->bek", hidden, self.second).relu()
        mixed = (self.gate(batch[0]).softmax(1)[:, :, None] * hidden).sum(1)
        return functional.mse_loss(self.head(mixed), batch[1])


class LogitScaleWithoutLogarithm(Case):
    """A contrastive model of pairs whose logarithm of the scale starts at 1/0.07, and not at the logarithm of that."""

    kinds = ("initialization", "forward-overflow")
    places = ("scale", "exp", "logit_scale")
    good = 1.5
    takes_logarithm = False
    cure = settings(takes_logarithm=True)
    cured_by = "scale|clamp|bound"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.left, self.right = nn.Linear(12, 16), nn.Linear(10, 16)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07) if self.takes_logarithm else 1 / 0.07))

    def data(self) -> dict[str, Tensor]:
        random = noise(422)
        hidden = torch.randn(640, 6, generator=random)
        picture = hidden @ torch.randn(6, 12, generator=random) + 0.1 * torch.randn(640, 12, generator=random)
        return {"picture": picture, "caption": hidden @ torch.randn(6, 10, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        left = functional.normalize(self.left(batch["picture"]), dim=1)[:64]
        right = functional.normalize(self.right(batch["caption"]), dim=1)[:64]
        logits = self.logit_scale.exp() * left @ right.T
        labels = torch.arange(len(logits))
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


class GeneratedWeights(GradientDescent, Case):
    """A network that generates the weights of another, which come out on the scale of an output and not of a weight."""

    kinds = ("initialization",)
    good = 0.5
    scale = 4.0
    cure = settings(scale=0.1)
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.task = nn.Embedding(5, 8)
        self.generate = nn.Linear(8, 40 * 40 * 3, bias=False)
        nn.init.normal_(self.generate.weight, std=0.4 * self.scale)
        self.embed, self.head = nn.Linear(6, 40), nn.Linear(40, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(423)
        inputs = torch.randn(640, 6, generator=random)
        return {"inputs": inputs, "task": torch.randint(0, 5, (640,), generator=random), "target": inputs[:, :1].tanh()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.embed(batch["inputs"])[:, None]
        for weight in self.generate(self.task(batch["task"])).view(-1, 3, 40, 40).unbind(1):
            hidden = (hidden @ weight).relu()
        return functional.mse_loss(self.head(hidden[:, 0]), batch["target"])


class HundredNormalLayers(Case):
    """A hundred linear layers without a bias, each drawn with deviation one: the outputs leave float32 on their way."""

    kinds = ("initialization", "depth")
    good = 1.2
    gain: float | None = None
    cure = settings(gain=1.0)
    lr = 1e-4
    steps = 60

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(100))
        for layer in self.layers:
            if self.gain is None:
                nn.init.normal_(layer.weight)  # type: ignore[arg-type]
            else:
                nn.init.orthogonal_(layer.weight, self.gain)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(320, 64, generator=noise(424))
        return inputs, inputs.flip(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.mse_loss(hidden, batch[1])

    def score(self) -> float:
        return super().score() / 2


class LeakyEncoderDecoder(GradientDescent, Case):
    """A deep encoder and decoder of leaky units without normalization, initialized as if half of them were silent."""

    kinds = ("depth", "initialization")
    good = 0.3
    normalizes = False
    cure = settings(normalizes=True)
    cured_by = "normali|kaiming|residual|xavier|orthogonal"
    lr = 0.05
    steps = 120

    def build(self) -> None:
        widths = [20, *[64] * 17, 20]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            linear = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(0.8)]
            if self.normalizes and outputs == 64:
                layers.append(nn.LayerNorm(64))
        self.net = nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(425)
        inputs = torch.randn(640, 3, generator=random) @ torch.randn(3, 20, generator=random) / 2
        return inputs + 0.1 * torch.randn(640, 20, generator=random), inputs

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])


class SkipsAddedUp(GradientDescent, Case):
    """Twenty blocks, each of which adds up the outputs of all blocks before it without a division."""

    kinds = ("depth",)
    good = 0.3
    normalizes = False
    cure = settings(normalizes=True)
    cured_by = "normali|residual|fewer|divide"
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 1)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(20))
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(426))
        return inputs, inputs[:, :1] * 0.7 + 0.3 * inputs[:, 1:2].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = [self.embed(batch[0])]
        for block in self.blocks:
            before = torch.stack(outputs).sum(0)
            before = functional.layer_norm(before, before.shape[1:]) if self.normalizes else before
            outputs.append(block(before.relu()))
        return functional.mse_loss(self.head(outputs[-1]), batch[1])


class CombinedCell(GradientDescent, Case):
    """A recurrent cell of one linear layer over inputs and state together, without an activation, over 120 steps."""

    kinds = ("recurrence", "initialization")
    places = ("i2h",)
    good = 0.6
    gain = 1.6
    cure = settings(gain=0.6)
    cured_by = "orthogonal|shorter"
    lr = 0.01
    steps = 120

    def build(self) -> None:
        self.i2h, self.i2o = nn.Linear(4 + 32, 32), nn.Linear(4 + 32, 2)
        nn.init.xavier_normal_(self.i2h.weight, self.gain)

    def data(self) -> dict[str, Tensor]:
        letters = torch.randn(480, 120, 4, generator=noise(427))
        return {"name": letters, "language": (letters[:, -3:, 0].mean(1) > 0).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.zeros(len(batch["name"]), 32)
        for letter in batch["name"].unbind(1):
            both = torch.cat([letter, hidden], 1)
            hidden = self.i2h(both)
        return functional.cross_entropy(self.i2o(both), batch["language"])


class IdentityStart(GradientDescent, Case):
    """A rectified recurrent network that starts at the identity, over 150 steps: an update takes it above one."""

    kinds = ("recurrence", "learning-rate")
    good = 0.2
    clip = 0.0
    cure = settings(clip=0.1)
    cured_by = "clip"
    lr = 0.01
    batch_size = 64
    steps = 200

    def build(self) -> None:
        self.rnn, self.head = nn.RNN(2, 48, nonlinearity="relu", batch_first=True), nn.Linear(48, 1)
        inputs, recurrent, *biases = self.rnn.parameters()
        nn.init.eye_(recurrent)
        nn.init.normal_(inputs, std=0.01)
        for bias in biases:
            nn.init.zeros_(bias)

    def data(self) -> dict[str, Tensor]:
        random = noise(428)
        numbers, marks = torch.rand(512, 150, generator=random), torch.zeros(512, 150)
        for half in (0, 75):
            marks[torch.arange(512), torch.randint(half, half + 75, (512,), generator=random)] = 1.0
        return {"sequence": torch.stack([numbers, marks], 2), "sum": (numbers * marks).sum(1, keepdim=True)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, _ = self.rnn(batch["sequence"])
        return functional.mse_loss(self.head(hidden[:, -1]), batch["sum"])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip)


class RolloutOfForecasts(Case):
    """A forecast that is fed its own outputs for sixty steps, each of which adds a network's answer to the state."""

    kinds = ("recurrence",)
    places = ("step", "inner", "outer")
    good = 0.3
    horizon = 60
    cure = settings(horizon=4)
    cured_by = "shorter|truncat"
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.inner, self.outer = nn.Linear(6, 48), nn.Linear(48, 6)
        nn.init.orthogonal_(self.inner.weight, 1.4)
        nn.init.orthogonal_(self.outer.weight, 1.0)

    def data(self) -> dict[str, Tensor]:
        random = noise(429)
        state = torch.randn(480, 6, generator=random)
        turn = torch.linalg.matrix_exp(0.1 * (torch.triu(torch.ones(6, 6)) - torch.tril(torch.ones(6, 6))))
        states = [state]
        for _ in range(60):
            states.append(states[-1] @ turn)
        return {"state": state, "future": torch.stack(states[1:], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        state, errors = batch["state"], []
        for step in range(self.horizon):
            state = state + self.outer(self.inner(state).relu())
            errors.append((state - batch["future"][:, step]).square().mean())
        return torch.stack(errors).mean()
