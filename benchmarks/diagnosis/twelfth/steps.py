"""Optimizers that users wrote, and a run that was resumed, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,arg-type"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RowsOfOneNorm(torch.optim.Optimizer):
    """Momentum, whose rows are divided by a moving norm and whose whole is then brought to its former norm.

    Args:
        params: Parameters.
        lr: Learning rate.
        smallest: The least norm that is divided by.
    """

    def __init__(self, params: Any, lr: float, smallest: float) -> None:
        super().__init__(params, {"lr": lr, "smallest": smallest})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                    state["rows"] = torch.zeros_like(weight[..., :1])
                mean, rows = state["mean"], state["rows"]
                mean.lerp_(weight.grad, 0.1)
                rows.lerp_(mean.square().mean(-1, keepdim=True), 0.05)
                scaled = mean / (rows.sqrt() + 1e-8)
                ratio = mean.norm() / scaled.norm().clamp(min=group["smallest"])
                full = 0.2 * math.sqrt(weight.numel()) / mean.norm().clamp(min=1e-8)
                weight.sub_(group["lr"] * full * ratio * scaled)
        return loss


class RatioOfNorms(Case):
    """A sum of blocks, whose last weights start at zero, with an optimizer that divides by the norm of an update.

    Report: github.com/microsoft/dion/pull/24. Confirmed: weights whose gradients are zero have an update of zero, and
    its norm is divided by itself; the norm is clamped.
    """

    kinds = ("optimizer-state", "undefined-operation")
    good = 0.5
    smallest = 0.0
    cure = settings(smallest=1e-8)
    cured_by = r"clamp|zero|norm"
    not_cured_by = (settings(lr=1e-5),)
    lr = 1e-2
    steps = 200

    def build(self) -> None:
        self.first, self.head = nn.Linear(12, 32), nn.Linear(32, 3)
        self.wide = nn.ModuleList(nn.Linear(32, 64, bias=False) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(64, 32, bias=False) for _ in range(2))
        for layer in self.back:
            nn.init.zeros_(layer.weight)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12601)
        rows = torch.randn(1024, 12, generator=random)
        return rows, (rows[:, :3] * rows[:, 3:6].sign()).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.first(batch[0])
        for wide, back in zip(self.wide, self.back, strict=True):
            hidden = hidden + back(wide(hidden).relu())
        return functional.cross_entropy(self.head(hidden), batch[1])

    def configure_optimizers(self) -> Any:
        return RowsOfOneNorm(self.parameters(), self.lr, self.smallest)


class CorrectedAdam(torch.optim.Optimizer):
    """Adam, from its formula.

    Args:
        params: Parameters.
        lr: Learning rate.
        subtracts_twice: Whether the corrections of the moments are themselves subtracted from one.
    """

    def __init__(self, params: Any, lr: float, subtracts_twice: bool) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.95, 0.999), "subtracts_twice": subtracts_twice})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
                state["step"] += 1
                corrections = [1 - beta ** state["step"] for beta in group["betas"]]
                if group["subtracts_twice"]:
                    corrections = [1 - one for one in corrections]
                state["mean"].lerp_(weight.grad, 1 - group["betas"][0])
                state["square"].lerp_(weight.grad.square(), 1 - group["betas"][1])
                mean, square = state["mean"] / corrections[0], state["square"] / corrections[1]
                weight.sub_(group["lr"] * mean / (square.sqrt() + 1e-8))
        return loss


class CorrectionOfACorrection(Case):
    """An Adam whose corrections of the moments are subtracted from one twice, so that they fall toward zero.

    Report: github.com/kozistr/pytorch_optimizer/pull/308 and issues/305. Confirmed: one was subtracted once too often
    in the corrections; training began well, and gradients exploded after some steps.
    """

    kinds = ("optimizer-state",)
    host = "plain"
    good = 0.1
    subtracts_twice = True
    cure = settings(subtracts_twice=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "correction|torch.optim"
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        rows = torch.randn(1024, 8, generator=noise(12602))
        return rows, (rows[:, :1] * rows[:, 1:2]).tanh() + rows[:, 2:3]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return CorrectedAdam(self.parameters(), self.lr, self.subtracts_twice)


class RateOfTheFirstEpoch(Case):
    """Points of scans, with a rate that has fallen to a fortieth when the run stops, and is the first one when resumed.

    Report: github.com/torch-points3d/torch-points3d/pull/630. Confirmed: the scheduler is created after the state of
    the optimizer was loaded, and sets the rate to the first one. The first rate was reached by a warm-up.
    """

    kinds = ("learning-rate-jump",)
    host = "plain"
    good = 0.05
    keeps_rate = False
    cure = settings(keeps_rate=True)
    lr = 0.15
    steps = 500

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        )
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        points = torch.randn(1024, 6, generator=noise(12603))
        return points, torch.stack([(2 * points[:, 0]).sin() + points[:, 1], points[:, 2] * points[:, 3]], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def rate(self) -> float:
        if self.taken >= 380 and not self.keeps_rate:
            return self.lr  # fault
        return self.lr * min((self.taken + 1) / 100, 40 ** (-max(self.taken - 100, 0) / 280), 1.0)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        for group in optimizers[0].param_groups:
            group["lr"] = self.rate()
        self.taken += 1
        super().optimize(model, batch, optimizers, watch, backward)
