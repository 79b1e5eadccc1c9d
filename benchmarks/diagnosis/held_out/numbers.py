"""Number formats, signals, schedules and states of optimizers."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class StoredInHalf(Case):
    """Energies of recordings were stored in float16; those of the loudest one are above 65,504 and became infinite."""

    kinds = ("nonfinite-input",)
    places = ("[0]",)
    rows = (8, 188)
    good = 0.4
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32"
    shuffle = False
    batch_size = 36
    lr = 5e-3

    def build(self) -> None:
        self.layers = nn.Sequential(nn.Conv1d(1, 12, 3), nn.GroupNorm(3, 12), nn.GELU(), nn.AdaptiveAvgPool1d(1))
        self.speaks = nn.Linear(12, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(150)
        label = torch.randint(0, 2, (540,), generator=random)
        steady = torch.rand(540, 1, 1, generator=random)
        energy = 2e3 * torch.exp(
            steady + torch.randn(540, 1, 20, generator=random) * (0.2 + 0.8 * label[:, None, None])
        )
        energy = energy.clamp(max=6e4)
        energy[188] *= 40
        return torch.log1p(energy.to(getattr(torch, self.dtype_name)).float()) - 8, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.speaks(self.layers(batch[0]).squeeze(2)), batch[1])


class ScaleNeverRecovers(Case):
    """A gradient scaler that starts too high, halves too rarely and never grows: hardly a step is taken."""

    kinds = ("half-precision",)
    good = 0.4
    start = 2.0**60
    cure = settings(start=2.0**10)
    mixed = True
    cured_by = "init_scale|larger scale|smaller scale|loss scale"
    other_cures = settings(**{"float32|32-true": settings(mixed=False)})
    lr = 5e-3
    steps = 100

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))
        scaler = torch.amp.GradScaler("cpu", init_scale=self.start, backoff_factor=0.75, growth_interval=10_000)
        self.options = settings(plugins=[MixedPrecision("16-mixed", "cpu", scaler)] if self.mixed else [])

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(480, 12, generator=noise(151))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])


class TinyConstant(Case):
    """A vector is divided by its norm plus 1e-8, in float16, where 1e-8 is zero; some vectors are zero."""

    kinds = ("half-precision", "undefined-operation")
    places = ("div",)
    good = 0.75
    tiny = 1e-8
    cure = settings(tiny=1e-3)
    dtype_name = "float16"
    cured_by = r"\beps|1e-|larger"
    other_cures = settings(float32=settings(dtype_name="float32"))
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.tokens = nn.Embedding(30, 32, padding_idx=0)
        self.label = nn.Linear(32, 3)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(1, 30, (480, 6), generator=noise(152))
        tokens[::37, 3:] = 0
        return tokens, (tokens[:, :3] > 15).sum(1).clamp(max=2)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.tokens(batch[0])
        vectors = vectors / (vectors.norm(dim=2, keepdim=True) + self.tiny)  # fault
        return functional.cross_entropy(5 * self.label(vectors.mean(1)).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)


class StatesChangedPlaces(Case):
    """Adam's state is restored in another order of the parameters: large steps for weights with large slopes."""

    kinds = ("optimizer-state",)
    places = ("quiet", "loud", "adam")
    good = 0.2
    in_order = False
    cure = settings(in_order=True)
    cured_by = "order|state"
    steps = 25
    lr = 0.05

    def build(self) -> None:
        self.quiet, self.loud = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        optimizer = self.adam([self.quiet.weight, self.loud.weight])
        fields = self.data()
        for step in range(300):
            rows = torch.arange(32 * step, 32 * step + 32) % len(fields[0])
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(tuple(field[rows] for field in fields)))
            optimizer.step()
        self.saved = copy.deepcopy(optimizer.state_dict())

    def adam(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=(0.9, 0.9999))

    def data(self) -> tuple[Tensor, ...]:
        random = noise(153)
        inputs = torch.randn(640, 64, generator=random)
        truth = inputs[:, :32].roll(1, 1) * 1e-3 + inputs[:, 32:].flip(1) + 0.3 * torch.randn(640, 32, generator=random)
        return inputs, truth

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        quiet, loud = batch[0].chunk(2, 1)
        return functional.mse_loss(1e-3 * self.quiet(quiet) + self.loud(loud), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        both = [self.quiet.weight, self.loud.weight]
        optimizer = self.adam(both if self.in_order else both[::-1])
        optimizer.load_state_dict(self.saved)
        return optimizer


class TooHighAPeak(Case):
    """One cycle of the rate whose peak is a thousand times its start."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.3
    peak = 4.0
    cure = settings(peak=0.05)
    cured_by = "max_lr|peak|warm"
    steps = 140
    lr = 0.05

    def build(self) -> None:
        self.blocks = nn.Sequential(nn.Conv1d(2, 16, 3), nn.Hardswish(), nn.Conv1d(16, 16, 3), nn.Hardswish())
        self.amplitude = nn.Linear(16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(560, 2, 14, generator=noise(154))
        scale = 0.5 + torch.rand(560, 1, 1, generator=noise(155))
        return signal * scale, (scale.squeeze(2) - 1) * 3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.amplitude(self.blocks(batch[0]).mean(2)), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peak, 140, div_factor=1000, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
