"""Architectures and their initial weights, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.fifth.transformer import LanguageModel as LibraryModel


class BalancedRouter(Case):
    """A mixture of experts whose router starts at zero: the root of the variance of equal loads has no slope."""

    # github.com/google-research/vmoe/pull/218
    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.3
    least = 0.0
    cure = settings(least=1e-6)
    cured_by = r"\beps|clamp|away"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.router = nn.Linear(6, 4)
        nn.init.zeros_(self.router.weight)
        nn.init.zeros_(self.router.bias)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1)) for _ in range(4))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(621))
        return inputs, inputs[:, :1] * inputs[:, 1:2].sign()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        chance = self.router(batch[0]).softmax(1)
        made = (chance[:, None] * torch.stack([one(batch[0]) for one in self.experts], 2)).sum(2)
        load = chance.sum(0)
        spread = (load.var() + self.least).sqrt() / load.mean()  # fault
        return functional.mse_loss(made, batch[1]) + 0.01 * spread


class AdapterInFloat16(Case):
    """Low-rank adapters in float16: one matrix starts at zero, so that the other's first gradient is zero in Adam."""

    # github.com/cactus-compute/needle/issues/53, github.com/CambioML/pykoi/pull/69
    kinds = ("half-precision",)
    good = 0.6
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16|eps"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.base = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 5)).requires_grad_(False)
        self.down, self.up = nn.Linear(12, 4, bias=False), nn.Linear(4, 48, bias=False)
        nn.init.zeros_(self.up.weight)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 12, generator=noise(622))
        return inputs, inputs[:, :5].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs = batch[0].to(self.down.weight.dtype)
        hidden = self.base[0](inputs) + 4 * self.up(self.down(inputs))
        return functional.cross_entropy(self.base[2](self.base[1](hidden)).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([*self.down.parameters(), *self.up.parameters()], lr=self.lr)


class StepSizeOfAZeroLayer(Case):
    """Training for eight bits: a step size is the largest weight over 127, zero in a last layer that starts at zero."""

    # github.com/alibaba/TinyNeuralNetwork/issues/337, github.com/arm/neural-graphics-model-gym/pull/207
    kinds = ("undefined-operation",)
    places = ("div", "head", "conv2")
    good = 0.3
    least = 0.0
    cure = settings(least=1e-6)
    cured_by = r"\beps|clamp|away"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.first, self.head = nn.Conv2d(2, 12, 3, stride=2), nn.Linear(12 * 9, 3)
        nn.init.zeros_(self.head.weight)

    def quantized(self, weight: Tensor) -> Tensor:
        step = (weight.detach().abs().amax() / 127).clamp(min=self.least)
        return weight + ((weight / step).round() * step - weight).detach()  # fault

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(640, 2, 8, 8, generator=noise(623))
        return picture, torch.bucketize(picture[:, 0, 2:5, 2:5].mean((1, 2)), torch.tensor([-0.15, 0.15]))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = functional.conv2d(batch[0], self.quantized(self.first.weight), self.first.bias, 2).relu()
        scores = functional.linear(hidden.flatten(1), self.quantized(self.head.weight), self.head.bias)
        return functional.cross_entropy(scores, batch[1])


class LayerDecayUpsideDown(Case):
    """Tuning with a rate that decays from the last layer to the first, whose exponent has the wrong sign."""

    # github.com/facebookresearch/xformers/issues/219 (the field); layer-wise decay of fine-tuning scripts
    kinds = ("learning-rate",)
    good = 0.35
    decay = 1 / 0.35
    cure = settings(decay=0.35)
    not_cured_by = (settings(lr=1e-3),)
    lr = 1e-2
    steps = 120

    def build(self) -> None:
        self.words = nn.Embedding(12, 24)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True) for _ in range(4))
        self.head = nn.Linear(24, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 12, (640, 8), generator=noise(624))
        return words, words[:, 0] % 3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.words(batch[0])
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.cross_entropy(self.head(hidden[:, 0]), batch[1])

    def configure_optimizers(self) -> Any:
        parts = [self.words, *self.layers, self.head]
        groups = [
            {"params": list(part.parameters()), "lr": self.lr * self.decay ** (len(parts) - 1 - place)}
            for place, part in enumerate(parts)
        ]
        return torch.optim.AdamW(groups)


class SinesWithoutTheirScale(Case):
    """A network of sines with a frequency of 30 in every layer, whose weights were not divided by it at the start."""

    # github.com/lululxvi/deepxde/issues/1953 (the field); networks of sines need an initialization of their own
    kinds = ("initialization", "depth")
    good = 0.05
    frequency = 30.0
    divisor = 1.0
    cure = settings(divisor=30.0)
    not_cured_by = (settings(lr=1e-5),)
    lr = 1e-3
    steps = 300

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(wide, 48) for wide in (2, 48, 48, 48))
        self.last = nn.Linear(48, 1)
        for weight in [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)][1:]:
            nn.init.uniform_(weight, -((6 / 48) ** 0.5) / self.divisor, (6 / 48) ** 0.5 / self.divisor)

    def data(self) -> tuple[Tensor, Tensor]:
        place = 2 * torch.rand(640, 2, generator=noise(625)) - 1
        return place, (3 * place[:, :1]).sin() * (2 * place[:, 1:]).cos()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for layer in self.layers:
            hidden = (self.frequency * layer(hidden)).sin()
        return functional.mse_loss(self.last(hidden), batch[1])


class LayerScaleWithoutItsMinus(Case):
    """A transformer whose scales of branches start at 1e5, where 1e-5 was meant."""

    # github.com/facebookresearch/xformers/issues/219 (the field); scales of branches of deep vision transformers
    kinds = ("initialization",)
    places = ("scale", "scales")
    good = 0.4
    first = 1e5
    cure = settings(first=1e-1)
    cured_by = "usual scale"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.inside, self.last = nn.Linear(9, 32), nn.Linear(32, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(6))
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(6))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((32,), self.first)) for _ in range(6))

    def data(self) -> tuple[Tensor, Tensor]:
        patch = torch.randn(640, 9, generator=noise(626))
        return patch, patch[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.inside(batch[0])
        for norm, branch, scale in zip(self.norms, self.branches, self.scales, strict=True):
            hidden = hidden + scale * branch(norm(hidden))
        return functional.cross_entropy(self.last(hidden), batch[1])


class GatesWithoutASigmoid(Case):
    """Ten layers whose gate is a plain product of two linear maps: what is above one is squared in each."""

    # github.com/cvignac/SMP/issues/3 (depth without normalization)
    kinds = ("depth", "forward-overflow")
    good = 0.5
    has_norm = False
    cure = settings(has_norm=True)
    cured_by = "sigmoid|normali|norm"
    not_cured_by = (settings(lr=1e-5),)
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.inside, self.last = nn.Linear(8, 32), nn.Linear(32, 3)
        self.layers = nn.ModuleList(nn.Linear(32, 64) for _ in range(10))
        self.norms = nn.ModuleList(nn.LayerNorm(32) if self.has_norm else nn.Identity() for _ in range(10))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(627))
        return 3 * inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.inside(batch[0])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            value, gate = layer(norm(hidden)).chunk(2, 1)
            hidden = hidden + 2 * value * gate
        return functional.cross_entropy(self.last(hidden), batch[1])


class RectifiedGates(Case):
    """A long short-term memory of the user's own with rectified units in place of tanh, over a hundred steps."""

    # github.com/AlexanderVNikitin/tsgm/issues/59
    kinds = ("recurrence",)
    good = 0.35
    is_rectified = True
    cure = settings(is_rectified=False)
    cured_by = "tanh|sigmoid|bound"
    lr = 5e-3
    steps = 60

    def build(self) -> None:
        self.cell, self.head = nn.Linear(4 + 24, 4 * 24), nn.Linear(24, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(480, 100, 4, generator=noise(628))
        return signal, (signal[:, -3:, 0].mean(1) > 0).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        bound = torch.relu if self.is_rectified else torch.tanh
        state, memory = batch[0].new_zeros(len(batch[0]), 24), batch[0].new_zeros(len(batch[0]), 24)
        for step in batch[0].unbind(1):
            forget, add, out, new = self.cell(torch.cat([step, state], 1)).chunk(4, 1)
            memory = (forget + 1).sigmoid() * memory + add.sigmoid() * bound(3 * new)
            state = out.sigmoid() * bound(memory)
        return functional.cross_entropy(self.head(state), batch[1])


class StateNeverReset(Case):
    """A forecaster that keeps its state from batch to batch and never resets it; its linear state grows."""

    # github.com/ageron/handson-ml2/issues/32
    kinds = ("recurrence",)
    good = 0.3
    resets = False
    cure = settings(resets=True)
    cured_by = "reset|detach|bound"
    lr = 2e-3
    steps = 200

    state: Tensor

    def build(self) -> None:
        self.inside, self.inner, self.head = nn.Linear(2, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 1)
        nn.init.orthogonal_(self.inner.weight, gain=1.03)
        self.register_buffer("state", torch.zeros(32, 16))

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(640, 12, 2, generator=noise(629))
        return signal, signal[:, -2:, :1].mean(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        is_kept = self.training and not self.resets
        state = self.state if is_kept else batch[0].new_zeros(len(batch[0]), 16)
        for step in batch[0].unbind(1):
            state = self.inner(state) + self.inside(step)
        if is_kept:
            self.state = state.detach()
        return functional.mse_loss(self.head(state), batch[1])


class NewWordsAtTheirOwnScale(LibraryModel):
    """Words are added to a language model, and their vectors drawn with a deviation of 25 where 0.02 is usual."""

    # github.com/lmsdss/LayerNorm-Scaling/issues/6
    kinds = ("initialization",)
    places = ("wte", "lm_head")
    deviation = 25.0
    cure = settings(deviation=0.02)

    def build(self) -> None:
        super().build()
        with torch.no_grad():
            self.model.get_input_embeddings().weight[12:].normal_(0, self.deviation)  # type: ignore[operator]


class CollapsedTwins(Case):
    """Two views of a sample are to have the same code and nothing keeps the codes apart: all become the same."""

    # github.com/facebookresearch/simsiam/issues/7
    kinds = ("unknown",)
    good = 0.7
    spread = 0.0
    cure = settings(spread=1.0)
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 6))

    def data(self) -> tuple[Tensor]:
        return (torch.randn(640, 10, generator=noise(630)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        first, second = (self.net(batch[0] + 0.2 * torch.randn_like(batch[0])) for _ in range(2))
        apart = (1 - (first.var(0) + 1e-4).sqrt()).relu().mean()
        return functional.mse_loss(first, second) + self.spread * apart

    def score(self) -> float:
        return 1 - float(self.net(self.clean()[0]).std(0).mean())
