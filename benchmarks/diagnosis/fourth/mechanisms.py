"""Cases that were written after the rules had been mended on the other files of this set, of other mechanisms."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.diagnosis.case import Case, Rows, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class RecomputedGates(Case):
    """Blocks whose activations are computed again in the backward pass; their gates are exp of unbounded scores."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.4
    gain = 60.0
    cure = settings(gain=0.3)
    cured_by = "tanh|softplus|clamp|normalize"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.inside, self.out = nn.Linear(10, 32), nn.Linear(32, 2)
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 10, generator=noise(481))
        return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()

    def gated(self, gate: nn.Module, hidden: Tensor) -> Tensor:
        weight = torch.exp(self.gain * gate(hidden))  # fault
        return functional.layer_norm(hidden * weight, (32,))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.tanh(self.inside(batch[0]))
        for gate in self.gates:
            hidden = checkpoint(self.gated, gate, hidden, use_reentrant=False)
        return functional.cross_entropy(self.out(hidden), batch[1])


class UnitVector(torch.autograd.Function):
    """The direction of a vector, with a backward pass of its own."""

    eps = 0.0

    @staticmethod
    def forward(ctx: Any, vector: Tensor, eps: float) -> Tensor:
        length = vector.norm(dim=1, keepdim=True)
        ctx.save_for_backward(vector, length)
        ctx.eps = eps
        return vector / (length + 1e-6)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        vector, length = ctx.saved_tensors
        (gradient,) = gradients
        along = (vector * gradient).sum(1, keepdim=True) / (length.square() + ctx.eps)
        return (gradient - along * vector) / (length + ctx.eps), None


class OwnBackwardPass(Case):
    """A function with a backward pass written by hand, which divides by a length that is zero for blank samples."""

    kinds = ("undefined-operation",)
    places = ("div", "unitvector", "mechanisms.py")
    good = 0.3
    eps = 0.0
    cure = settings(eps=1e-6)
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.project, self.head = nn.Linear(8, 4, bias=False), nn.Linear(4, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(482)
        sample = torch.randn(512, 8, generator=random)
        label = (sample[:, 0] > 0).float()
        sample[torch.rand(512, generator=random) < 0.01] = 0.0
        return {"sample": sample, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        direction = UnitVector.apply(self.project(batch["sample"]), self.eps)
        return functional.binary_cross_entropy_with_logits(self.head(3 * direction).squeeze(1), batch["label"])


class EntropyOfTheSure(Case):
    """An entropy bonus as p * log(p) of a softmax that is sure of its choice: a probability is exactly zero."""

    kinds = ("undefined-operation",)
    places = ("log", "mul")
    good = 0.2
    gain = 120.0
    cure = settings(gain=1.0)
    cured_by = "log_softmax|clamp"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))

    def data(self) -> dict[str, Tensor]:
        observation = torch.randn(640, 6, generator=noise(483))
        return {"observation": observation, "action": observation[:, :4].argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        chance = (self.gain * self.policy(batch["observation"])).softmax(1)
        entropy = -(chance * chance.log()).sum(1)  # fault
        chosen = chance.gather(1, batch["action"][:, None]).squeeze(1)
        return -(chosen + 0.01 * entropy).mean()

    def score(self) -> float:
        batch = self.clean()
        return float((self.policy(batch["observation"]).argmax(1) != batch["action"]).float().mean())


class EmptySequence(Case):
    """Sequences with their lengths, which the sum over time is divided by; a customer without purchases has none."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    rows = (11, 291)
    good = 0.4
    least = 0
    cure = settings(least=1)
    shuffle = False
    batch_size = 20
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.inside, self.out = nn.Linear(3, 24), nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(484)
        purchases = torch.randn(480, 7, 3, generator=random)
        number = torch.randint(1, 8, (480,), generator=random)
        number[291] = 0
        return purchases, number, (purchases[:, 0, 0] > 0).float()

    def loader(self) -> DataLoader[Any]:
        def collate(rows: Any) -> Any:
            purchases, number, stays = (torch.stack(field) for field in zip(*rows, strict=True))
            return [(purchases, number), stays]

        return DataLoader(Rows(self.data()), self.batch_size, collate_fn=collate)

    def loss(self, batch: Any) -> Tensor:
        (purchases, number), stays = batch
        seen = torch.arange(7) < number[:, None]
        hidden = torch.relu(self.inside(purchases)) * seen[..., None]
        pooled = hidden.sum(1) / number.clamp(min=self.least)[:, None] + hidden[:, 0]  # fault
        return functional.binary_cross_entropy_with_logits(self.out(pooled).squeeze(1), stays)

    def score(self) -> float:
        purchases, number, stays = self.clean()
        return float(self.loss([(purchases, number), stays]))


class Trades(IterableDataset[Any]):
    """Times and prices of trades, of which a few happen at the same time as the one before."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield windows of six trades."""
        random = noise(485)
        while True:
            gaps = torch.rand(6, generator=random)
            gaps[torch.rand(6, generator=random) < 0.002] = 0.0
            price = 0.3 * torch.randn(6, generator=random).cumsum(0)
            yield {"time": 0.1 + gaps.cumsum(0), "price": price, "rises": (price[-1] > price[0]).float()}


class TradesAtOneTime(Case):
    """The slope of a price between trades, computed in the module; two trades of a stream have the same time."""

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.3
    shortest = 0.0
    cure = settings(shortest=1e-2)
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    def loader(self) -> DataLoader[Any]:
        return DataLoader(Trades(), self.batch_size)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        change, passed = batch["price"].diff(dim=1), batch["time"].diff(dim=1)
        slope = change / passed.clamp(min=self.shortest)  # fault
        logit = self.net(torch.cat([change, slope / 5], 1)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logit, batch["rises"])

    def score(self) -> float:
        batch = next(iter(DataLoader(Trades(), 200)))
        return float(self.loss(batch)) if self.shortest else float("nan")


class ConvergenceOfSilence(Case):
    """A spectral distance relative to the target's size, with gradients of four batches added; one target is silent."""

    kinds = ("undefined-operation", "target-out-of-range", "outlier-batch")
    places = ("div", "clean")
    good = 0.7
    eps = 0.0
    cure = settings(eps=1e-2)
    shuffle = False
    batch_size = 8
    lr = 0.01
    steps = 60
    options = settings(accumulate_grad_batches=4)

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 12, 7, padding=3), nn.Tanh(), nn.Conv1d(12, 1, 7, padding=3))

    def data(self) -> dict[str, Tensor]:
        random = noise(486)
        clean = torch.sin(0.4 * torch.arange(64.0) + 6 * torch.rand(640, 1, generator=random))
        clean[213] = 0.0
        return {"noisy": (clean + 0.5 * torch.randn(640, 64, generator=random))[:, None], "clean": clean}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found, goal = (torch.fft.rfft(one).abs() for one in (self.net(batch["noisy"]).squeeze(1), batch["clean"]))
        distance = (found - goal).norm(dim=1) / (goal.norm(dim=1) + self.eps)  # fault
        return distance.mean()

    def score(self) -> float:
        batch = self.clean()
        return float(self.loss({name: one[:200] for name, one in batch.items()}))


class WeightOfOneSurvey(GradientDescent, Case):
    """Weights of a survey by a formula that divides by a share; one respondent weighs as much as a million others."""

    kinds = ("outlier-batch",)
    places = ("weight",)
    rows = (10, 874)
    good = 0.45
    largest = 1e6
    cure = settings(largest=1.0)
    shuffle = False
    lr = 0.1
    steps = 80

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(487)
        answers = torch.randn(1600, 8, generator=random)
        weight = 0.5 + torch.rand(1600, generator=random)
        weight[874] = self.largest
        return {"answers": answers, "weight": weight, "vote": (answers[:, 0] > answers[:, 1]).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        error = (self.net(batch["answers"]).squeeze(1) - batch["vote"]).square()
        return (batch["weight"] * error).mean() * 2


class CrossEntropyByHand(Case):
    """A cross-entropy written with log(1 - p) in bfloat16, where a probability above 0.998 is rounded to one."""

    kinds = ("half-precision", "undefined-operation")
    places = ("log",)
    good = 0.4
    precision = "bf16-true"
    cure = settings(precision="32-true")
    cured_by = r"float32|32-true|clamp|logsigmoid"
    lr = 0.01
    steps = 150

    @property
    def options(self) -> Any:  # type: ignore[override]
        """Arguments of the Trainer."""
        return {"precision": self.precision}

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(488)
        inputs = 2 * torch.randn(640, 8, generator=random)
        flipped = torch.rand(640, generator=random) < 0.03
        return inputs, ((inputs[:, 0] + 0.8 * inputs[:, 1] > 0) ^ flipped).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        chance = torch.sigmoid(self.net(batch[0].to(next(self.net.parameters()).dtype)).squeeze(1))
        label = batch[1].to(chance.dtype)
        return -(label * torch.log(chance) + (1 - label) * torch.log(1 - chance)).mean()  # fault

    def score(self) -> float:
        inputs, label = self.clean()
        net = self.net.float()
        return float(functional.binary_cross_entropy_with_logits(net(inputs.float()).squeeze(1), label.float()))
