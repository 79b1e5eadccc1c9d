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


class ScaledAtEachRestart(Case):
    """A spectrum from descriptors, on four workers: the rate is multiplied by their number whenever a run goes on.

    Report: github.com/mala-project/mala/issues/374 and pull/390, found with "adamwr super resolution model diverges
    after each restart eta scale". Confirmed: only a new run may scale its rate.
    """

    kinds = ("learning-rate-jump",)
    host = "plain"
    good = 0.02
    scales_again = True
    cure = settings(scales_again=False)
    batch_size = 32
    lr = 2e-3
    steps = 480
    workers = 4

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Linear(16, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 21), nn.LeakyReLU()
        )
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(11303)
        rows = torch.randn(1280, 16, generator=random)
        middle, wide = rows[:, :4].mean(1, keepdim=True), 0.5 + rows[:, 4:8].mean(1, keepdim=True).sigmoid()
        return rows, (-((torch.linspace(-2, 2, 21) - middle) / wide).square()).exp()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def prepare_to_train(self, optimizer: torch.optim.Optimizer) -> None:
        if self.taken == 0 or self.scales_again:
            for group in optimizer.param_groups:
                group["lr"] *= self.workers  # fault

    def restart(self, optimizer: torch.optim.Optimizer) -> None:
        saved = {"model": self.state_dict(), "optimizer": optimizer.state_dict()}
        self.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        self.prepare_to_train(optimizer)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        if self.taken == 0:
            self.prepare_to_train(optimizers[0])
        elif self.taken % 120 == 0:
            self.restart(optimizers[0])
        self.taken += 1
        super().optimize(model, batch, optimizers, watch, backward)


class HalvesInAdam(Case):
    """A denoiser of pictures from words is tuned with its weights in float16, where the epsilon of Adam is zero.

    Report: github.com/afiaka87/glide-finetune/pull/6, the first result with a cause that no earlier set follows of
    "bf16 fp16 training loss nan but fp32 works, Adam epsilon". Confirmed: an epsilon of 1e-4.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "fabric"
    good = 0.6
    epsilon = 1e-8
    cure = settings(epsilon=1e-4)
    cured_by = "eps|float32|bfloat16"
    not_cured_by = (settings(lr=1e-6),)
    lr = 1e-3
    steps = 200

    def build(self) -> None:
        self.words, self.when = nn.Embedding(8, 32), nn.Linear(1, 32)
        self.first, self.last = nn.Conv1d(1, 32, 5, padding=2), nn.Conv1d(32, 1, 5, padding=2)
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv1d(32, 32, 5, padding=2), nn.SiLU())
        self.half()

    def data(self) -> dict[str, Tensor]:
        random = noise(11304)
        word = torch.randint(8, (512,), generator=random)
        image = (torch.arange(24) * (word[:, None] + 1) / 8 + torch.rand(512, 1, generator=random)).sin()
        added, when = torch.randn(512, 24, generator=random), torch.rand(512, 1, generator=random)
        mixed = (1 - when).sqrt() * image + when.sqrt() * added
        return {"mixed": mixed.half(), "noise": added.half(), "time": when.half(), "word": word}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        about = self.when(batch["time"]) + self.words(batch["word"])
        hidden = self.middle(self.first(batch["mixed"][:, None]) + about[..., None])
        return functional.mse_loss(self.last(hidden)[:, 0].float(), batch["noise"].float())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, eps=self.epsilon, weight_decay=0.0)
