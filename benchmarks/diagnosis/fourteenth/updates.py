"""Schedules, optimizers and sums that users wrote, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.diagnosis.case import Case, noise, settings


class PowerOfMinusEpochs(Case):
    """Shifts between two pictures of a scene, at a rate that is to fall tenfold at times, whose exponent is negative.

    Report: github.com/SYSU-SAIL/PAM/issues/4. Confirmed and fixed: a tenth to the power of minus the number of
    periods makes the rate ten times larger at each.
    """

    kinds = ("learning-rate-jump",)
    good = 0.35
    sign = -1
    cure = settings(sign=1)
    cured_by = r"schedul|exponent|sign"
    batch_size = 32
    lr = 8e-3
    steps = 420

    def build(self) -> None:
        self.features = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2))
        self.refine = nn.Sequential(nn.Conv1d(6, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        random = noise(14303)
        scene = torch.randn(640, 46, generator=random)
        shift = torch.randint(6, (640,), generator=random)
        right = torch.stack([line[6 - by : 46 - by] for line, by in zip(scene, shift.tolist(), strict=True)])
        return {"left": scene[:, 6:], "right": right, "shift": shift.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        left, right = self.features(batch["left"][:, None]), self.features(batch["right"][:, None])
        cost = torch.stack([(left * right.roll(-by, 2)).mean(1) for by in range(6)], 1)
        share = (cost + self.refine(cost)).softmax(1)
        found = (share * torch.arange(6)[:, None]).sum(1)[:, :34]
        return functional.smooth_l1_loss(found, batch["shift"][:, None].expand_as(found))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        rate = LambdaLR(optimizer, lambda step: 0.1 ** (self.sign * (step // 140)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class RateOfNoWarmUp(Case):
    """Storms on maps of the climate, with a scheduler that divides by the number of steps of a warm-up, which is zero.

    Report: github.com/mlcommons/hpc/pull/27. Confirmed: without a warm-up the rate is NaN at the first step; the
    scheduler has to allow for a warm-up of no steps.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    good = 0.35
    warm_up = 0
    cure = settings(warm_up=1)
    cured_by = r"warm|schedul"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.down = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
        self.up = nn.Conv2d(40, 2, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        random = noise(14304)
        wind = torch.randn(384, 3, 12, 12, generator=random)
        smooth = functional.avg_pool2d(wind, 3, stride=1, padding=1)
        return {"map": wind, "storm": (smooth[:, 0] * 3 - smooth[:, 1] > 0.8).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        shallow = self.down(batch["map"]).relu()
        deep = functional.interpolate(self.deep(shallow).relu(), scale_factor=2)
        scores = self.up(torch.cat([shallow, deep], 1))
        return functional.cross_entropy(scores, batch["storm"], weight=torch.tensor([0.7, 1.3]))

    def factor(self, step: int) -> float:
        rise = np.float64(step) / np.float64(self.warm_up)  # fault
        return float(np.minimum(rise if step < self.warm_up or step == 0 else 1.0, 1.0)) * 0.995**step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        rate = LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class SumOfTheBatch(Case):
    """Digits by plain descent on the sum of the losses of a batch, at a rate for a batch a quarter as large.

    Report: github.com/jax-ml/jax/pull/3113. Confirmed: the loss is a sum that does not account for the number of
    samples, and gradients explode for larger batches; it is a mean now.
    """

    kinds = ("accumulated-gradients", "learning-rate")
    host = "plain"
    good = 0.6
    averages = False
    cure = settings(averages=True)
    cured_by = r"mean|average|divide"
    batch_size = 512
    lr = 0.08
    steps = 250

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(*size) for size in ((64, 96), (96, 96), (96, 10)))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(14505)
        digit = torch.randint(10, (4096,), generator=random)
        return torch.randn(10, 64, generator=random)[digit] + 1.5 * torch.randn(4096, 64, generator=random), digit

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        each = self.layers[-1](hidden).log_softmax(1) * functional.one_hot(batch[1], 10)
        return -each.sum() / (len(hidden) if self.averages or not torch.is_grad_enabled() else 1)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MomentumWithPenalty(torch.optim.Optimizer):
    """Descent with momentum and a penalty on the size of the weights.

    Args:
        params: Parameters.
        lr: Learning rate.
        penalty: Weight of the penalty.
    """

    def __init__(self, params: Any, lr: float, penalty: float) -> None:
        super().__init__(params, {"lr": lr, "penalty": penalty})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters."""
        for group in self.param_groups:
            for weight in group["params"]:
                change = weight.grad - group["penalty"] * weight
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                mean.mul_(0.9).add_(change)
                weight.sub_(group["lr"] * mean)
        return None


class PenaltyOfTheOtherSign(Case):
    """Yields of fields, with an optimizer of the user's own that takes the penalty of the weights from their gradients.

    Report: github.com/andersbll/deeppy/issues/17 and github.com/chainer/chainer/issues/261. Confirmed: the penalty is
    to be added to a gradient that is subtracted later; with a larger penalty the weights explode.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.5
    penalty = 0.08
    cure = settings(penalty=-0.08)
    not_cured_by = (settings(lr=3e-2),)
    cured_by = r"sign|weight.?decay|penalty"
    lr = 0.05
    steps = 500

    def build(self) -> None:
        self.soil = nn.Embedding(5, 4)
        self.net = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(14506)
        weather, soil = torch.randn(1024, 8, generator=random), torch.randint(5, (1024,), generator=random)
        crop = weather[:, 0] - 0.5 * weather[:, 1] * (soil - 2) / 2 + 0.2 * torch.randn(1024, generator=random)
        return {"weather": weather, "soil": soil, "crop": crop}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.net(torch.cat([batch["weather"], self.soil(batch["soil"])], 1))[:, 0]
        return functional.mse_loss(found, batch["crop"])

    def configure_optimizers(self) -> Any:
        return MomentumWithPenalty(self.parameters(), self.lr, self.penalty)
