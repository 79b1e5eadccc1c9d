"""Loops with several batches a step, with a restart and with weights that start anew, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SummedOverBatches(Case):
    """Pictures are classified on a cycle of one rate; ten batches are summed for a step, at the rate for one.

    Report: github.com/fastai/fastai2/pull/194 and github.com/fastai/fastai/issues/3023, the first result of "gradient
    accumulation loss explodes bug learning rate scheduler": loss and gradients suddenly explode after a while, with ten
    batches and not with one. Confirmed: the loss is not divided by the number of batches, and should be.
    """

    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.4
    divisor = 1
    cure = settings(divisor=10)
    cured_by = r"divid|averag|mean"
    batch_size = 16
    lr = 0.08
    steps = 600

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(216, 4),
        )
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(11301)
        label = torch.randint(4, (640,), generator=random)
        shapes = torch.randn(4, 1, 12, 12, generator=random)
        return shapes[label] / 2 + torch.randn(640, 1, 12, 12, generator=random), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": cycle}

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch) / self.divisor
        watch.loss(loss)
        backward(loss)  # fault
        self.taken += 1
        if self.taken % 10 == 0:
            optimizer.step()
            optimizer.zero_grad()


class ResampledFeatures(Case):
    """A sparse autoencoder whose unused features start anew now and then, and with them the state of every weight.

    Report: github.com/ai-safety-foundation/sparse_autoencoder/pull/115, the first result with a cause of "super
    resolution training collapse loss spike after epochs cause Adam": the loss spikes at each resampling. Confirmed:
    only the state of the features that start anew is reset.
    """

    kinds = ("optimizer-state",)
    host = "plain"
    good = 0.03
    resets_all = True
    cure = settings(resets_all=False)
    batch_size = 64
    lr = 2e-2
    steps = 420

    def build(self) -> None:
        self.encode, self.decode = nn.Linear(24, 96), nn.Linear(96, 24)
        self.used = torch.zeros(96)
        self.taken = 0

    def data(self) -> tuple[Tensor]:
        random = noise(11302)
        active = torch.rand(2048, 48, generator=random) < 0.06
        directions = functional.normalize(torch.randn(48, 24, generator=random), dim=1)
        return ((active * (1 + torch.rand(2048, 48, generator=random))) @ directions,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        codes = self.encode(batch[0] - self.decode.bias).relu()
        if self.training:
            self.used += (codes > 0).float().sum(0).detach()
        return functional.mse_loss(self.decode(codes), batch[0]) + 3e-3 * codes.abs().sum(1).mean()

    @torch.no_grad()
    def resample(self, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        unused = (self.used < 5).nonzero()[:, 0]
        chosen = rows[torch.arange(len(unused)) % len(rows)]
        self.encode.weight[unused] = 0.2 * functional.normalize(chosen, dim=1)
        self.encode.bias[unused] = 0.0
        self.decode.weight[:, unused] = functional.normalize(chosen, dim=1).T
        self.used.zero_()
        for weight, of_features in ((self.encode.weight, 0), (self.encode.bias, 0), (self.decode.weight, 1)):
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[weight][name].index_fill_(of_features, unused, 0.0)
        if self.resets_all:
            for weight in self.parameters():
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[weight][name].zero_()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        super().optimize(model, batch, optimizers, watch, backward)
        self.taken += 1
        if self.taken % 100 == 0:
            self.resample(optimizers[0], batch[0])
