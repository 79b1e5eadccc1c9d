"""Runs with Fabric, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class FabricLoop(Case):
    """A case that is trained with Fabric."""

    host = "fabric"


class LeastSquaresAdversaries(FabricLoop):
    """Adversaries with least-squares losses, and gradient descent at a rate of 3 for one of them."""

    kinds = ("learning-rate",)
    good = 3.0
    cure = settings(lr=0.02)
    lr = 3.0
    steps = 250

    def build(self) -> None:
        self.make = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 8))
        self.judge = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        random = noise(521)
        return (torch.randn(640, 2, generator=random) @ torch.randn(2, 8, generator=random),)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_maker, of_judge = optimizers
        (real,) = batch
        made = self.make(torch.randn(len(real), 3))
        of_judge.zero_grad()
        loss = (self.judge(real) - 1).square().mean() + self.judge(made.detach()).square().mean()
        watch.loss(loss)
        backward(loss)
        of_judge.step()
        of_maker.zero_grad()
        loss = (self.judge(made) - 1).square().mean()
        watch.loss(loss)
        backward(loss)
        of_maker.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.make.parameters(), lr=1e-3, betas=(0.5, 0.999)),
            torch.optim.SGD(self.judge.parameters(), lr=self.lr, momentum=0.5),
        ]

    def score(self) -> float:
        (real,) = self.clean()
        return float(self.judge(real).abs().mean())


class WarmUpThatCompounds(FabricLoop):
    """A warm-up of the user's own that multiplies the present rate by 1 + step / 50 at each of thirty steps."""

    kinds = ("learning-rate-jump",)
    good = 0.3
    compounds = True
    cure = settings(compounds=False)
    cured_by = "schedule"
    lr = 1e-3
    steps = 150

    def build(self) -> None:
        self.lift, self.out = nn.Linear(4, 64), nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 4, generator=noise(522))
        return inputs, inputs[:, :1].sin()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(functional.gelu(self.lift(batch[0]))), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        self.count = getattr(self, "count", 0) + 1
        if self.compounds and 20 < self.count <= 50:
            for group in optimizers[0].param_groups:
                group["lr"] *= 1 + (self.count - 20) / 50
        super().optimize(model, batch, optimizers, watch, backward)

    def configure_optimizers(self) -> Any:
        return torch.optim.RAdam(self.parameters(), lr=self.lr)


class NoiseLevelsInBrainFloat(FabricLoop):
    """A denoiser in bfloat16 whose loss is weighted by 1 / (1 - a); the first a of the schedule is rounded to one."""

    kinds = ("half-precision", "undefined-operation")
    places = ("div", "reciprocal")
    good = 4.0
    precision = "bf16-true"
    cure = settings(precision="32-true")
    cured_by = "float32|32-true|clamp"
    lr = 3e-3
    steps = 200

    @property
    def options(self) -> Any:  # type: ignore[override]
        """Arguments of Fabric."""
        return {"precision": self.precision}

    kept: Tensor

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 48), nn.SiLU(), nn.Linear(48, 6))
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-3, 0.05, 60), 0))

    def data(self) -> dict[str, Tensor]:
        random = noise(523)
        clean = torch.randn(640, 6, generator=random)
        return {"clean": clean, "noise": torch.randn(640, 6, generator=random), "time": torch.arange(640) % 60}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        kept = self.kept[batch["time"]][:, None]
        noisy = kept.sqrt() * batch["clean"].to(kept.dtype) + (1 - kept).sqrt() * batch["noise"].to(kept.dtype)
        found = self.net(torch.cat([noisy, batch["time"][:, None].to(kept.dtype) / 60], 1))
        error = (found - batch["noise"].to(kept.dtype)).square()
        return (error / (1 - kept)).float().mean() / 10  # fault


class BlankScan(FabricLoop):
    """A dose by a small convolutional network; one scan's dose is in other units, and gradient descent has no clip."""

    kinds = ("outlier-batch",)
    good = 0.3
    dose = 3e7
    cure = settings(dose=1.0)
    shuffle = False
    lr = 0.05
    steps = 100

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        scan = torch.randn(3200, 1, 8, 8, generator=noise(524))
        dose = scan[:, 0, 3:6, 3:6].mean((1, 2))[:, None] * 3
        dose[2000] = self.dose
        return scan, dose

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
