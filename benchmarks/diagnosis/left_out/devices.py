"""Tables, devices and long series, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class PeakOfOneCycle(Case):
    """One cycle of the rate up to a peak of two, which another optimizer's recipe has, with Adam."""

    # github.com/tensorflow/models/issues/7904 (the answer)
    kinds = ("learning-rate-jump",)
    good = 0.4
    cure = settings(lr=0.02)
    lr = 2.0
    steps = 300

    def build(self) -> None:
        self.words = nn.EmbeddingBag(30, 16)
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def data(self) -> dict[str, Tensor]:
        random = noise(761)
        columns, codes = torch.randn(640, 4, generator=random), torch.randint(0, 30, (640, 3), generator=random)
        return {
            "columns": columns,
            "codes": codes,
            "label": torch.bucketize(columns[:, 0].contiguous(), torch.tensor([-0.5, 0.5])),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        joined = torch.cat([batch["columns"], self.words(batch["codes"])], 1)
        return functional.cross_entropy(self.body(joined), batch["label"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.steps + 5, div_factor=self.lr / 1e-3, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class ClosureThatDoesNotClear(Case):
    """LBFGS whose closure does not clear the gradients, which the loop does once before each step."""

    # github.com/pytorch/pytorch/issues/111369 and others (the form of the closure)
    host = "plain"
    kinds = ("accumulated-gradients",)
    good = 0.02
    clears = False
    cure = settings(clears=True)
    cured_by = "zero_grad"
    not_cured_by = (settings(lr=0.3),)
    batch_size = 160
    lr = 0.8
    steps = 40

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        dose = torch.randn(160, 4, generator=noise(762))
        return dose, (dose[:, :1] - dose[:, 1:2]).tanh() + 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=self.lr, max_iter=8)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()

        def closure() -> Tensor:
            if self.clears:
                optimizer.zero_grad()
            loss = model.loss(batch)
            watch.loss(loss)
            backward(loss)
            return loss

        optimizer.step(closure)


class CrossedColumns(Case):
    """Sixteen layers that each multiply with the columns once more: a polynomial of the seventeenth degree."""

    # deep and cross networks over columns with long tails
    kinds = ("depth", "forward-overflow")
    good = 0.6
    crossed = 16
    cure = settings(crossed=2)
    cured_by = "fewer|shallow"
    not_cured_by = (settings(lr=1e-5),)
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.cross = nn.ModuleList(nn.Linear(12, 12) for _ in range(self.crossed))
        self.head = nn.Linear(12, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(763)
        columns = torch.randn(640, 12, generator=random) * (0.4 * torch.randn(640, 12, generator=random)).exp()
        return 1.5 * columns, (columns[:, 0] * columns[:, 1] > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        first = crossed = batch[0]
        for layer in self.cross:
            crossed = first * layer(crossed) + crossed
        return functional.binary_cross_entropy_with_logits(self.head(crossed).squeeze(1), batch[1])


class PolynomialUnits(Case):
    """Layers of polynomials of Chebyshev up to the fourth degree, whose coefficients start at a deviation of a half."""

    # networks of learned functions, without the division by inputs and degree
    kinds = ("initialization", "depth")
    good = 0.2
    deviation = 0.5
    cure = settings(deviation=0.05)
    other_cures = settings(**{rf"std={NUMBER}": settings(deviation=float)})
    not_cured_by = (settings(lr=1e-5),)
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        shapes = [(5, 12), (12, 12), (12, 1)]
        self.coefficients = nn.ParameterList(self.deviation * torch.randn(wide, out, 5) for wide, out in shapes)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = 2 * torch.rand(640, 5, generator=noise(764)) - 1
        return inputs, (3 * inputs[:, :1]).sin() * inputs[:, 1:2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        value = batch[0]
        for coefficient in self.coefficients:
            terms = [torch.ones_like(value), value]
            for _ in range(3):
                terms.append(2 * value * terms[-1] - terms[-2])
            value = torch.einsum("bid,iod->bo", torch.stack(terms, 2), coefficient)
        return functional.mse_loss(value, batch[1])


class ClipOfSilence(Case):
    """Words for a microcontroller from the logarithm of a spectrum, made beforehand; two clips are silent."""

    # preprocessing of keyword spotting; github.com/neonbjb/tortoise-tts (the field)
    kinds = ("nonfinite-input",)
    places = ("spectrum",)
    rows = (1, 129, 5, 421)
    good = 0.6
    floor = 0.0
    cure = settings(floor=1e-1)
    cured_by = "floor"
    shuffle = False
    lr = 2e-2
    steps = 240

    def build(self) -> None:
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.pointwise, self.head = nn.Conv1d(8, 16, 1), nn.Linear(16, 3)
        self.norm = nn.GroupNorm(2, 16)

    def data(self) -> dict[str, Tensor]:
        power = torch.randn(640, 8, 20, generator=noise(765)).square()
        word = power[:, :3].mean(2).argmax(1)
        power[[129, 421]] = 0
        return {"spectrum": (power + self.floor).log(), "word": word}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.norm(self.pointwise(self.depthwise(batch["spectrum"]).relu())).relu()
        return functional.cross_entropy(self.head(hidden.mean(2)), batch["word"])


class IndependentUnits(nn.Module):
    """Recurrent units that each see nothing but their own state."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.inside, self.own = nn.Linear(2, 32), nn.Parameter(torch.empty(32).uniform_(0, most))

    def forward(self, series: Tensor) -> Tensor:
        state = series.new_zeros(len(series), 32)
        for step in self.inside(series).unbind(1):
            state = (step + self.own * state).relu()
        return state


class IndependentUnitsAboveOne(Case):
    """The sum of a marked part of 160 readings, by rectified units that see their own state; their weights pass one."""

    # independently recurrent networks need weights below one to the power of one over the length
    kinds = ("recurrence",)
    places = ("own", "units")
    good = 0.3
    most = 1.15
    cure = settings(most=1.0)
    cured_by = "below one"
    not_cured_by = (settings(lr=1e-5),)
    lr = 2e-3
    steps = 100

    def build(self) -> None:
        self.units, self.head = IndependentUnits(self.most), nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(766)
        value, mark = torch.rand(480, 160, generator=random), torch.rand(480, 160, generator=random) < 0.02
        return torch.stack([value, mark.float()], 2), (value * mark).sum(1, keepdim=True) / 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.units(batch[0])), batch[1])
