"""Sequences of letters and words, and documents."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def letters(seed: int, rows: int, length: int, alphabet: int = 12) -> Tensor:
    """Return sequences in which each letter mostly follows from the one before, shape ``(rows, length)``."""
    random = noise(seed)
    text = torch.randint(0, alphabet, (rows, length), generator=random)
    for place in range(1, length):
        follows = torch.rand(rows, generator=random) < 0.9
        text[:, place] = torch.where(follows, (3 * text[:, place - 1] + 1) % alphabet, text[:, place])
    return text


class LanguageModelAtSixty(Case):
    """A language model with gated units, plain gradient descent and a rate of 60 without the clipping it came with."""

    kinds = ("learning-rate",)
    good = 1.6
    lr = 60.0
    cure = settings(lr=1.0)
    steps = 150

    def build(self) -> None:
        self.letters = nn.Embedding(12, 24)
        self.lstm = nn.LSTM(24, 32, num_layers=2, batch_first=True)
        self.next_letter = nn.Linear(32, 12)

    def data(self) -> tuple[Tensor]:
        return (letters(110, 400, 12),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden, _ = self.lstm(self.letters(batch[0][:, :-1]))
        return functional.cross_entropy(self.next_letter(hidden).transpose(1, 2), batch[0][:, 1:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LogOfASoftmax(Case):
    """A cross-entropy written as log of softmax; once the network is sure, a probability is exactly zero."""

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.3
    stable = False
    cure = settings(stable=True)
    least = 0.0
    cured_by = "log_softmax|cross_entropy"
    other_cures = settings(**{r"clamp\(min|keep the argument": settings(least=1e-6)})
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.words = nn.EmbeddingBag(60, 24, mode="sum")
        self.topic = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 5))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(111)
        topic = torch.randint(0, 5, (500,), generator=random)
        return torch.randint(0, 12, (500, 16), generator=random) + 12 * topic[:, None], topic

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = 8 * self.topic(self.words(batch[0]))
        log_probability = (
            logits.log_softmax(1) if self.stable else torch.log(logits.softmax(1).clamp(min=self.least))
        )  # fault
        return -(functional.one_hot(batch[1], 5) * log_probability).sum(1).mean()

    def score(self) -> float:
        words, topic = self.clean()
        return float(functional.cross_entropy(8 * self.topic(self.words(words)), topic))


class ProductsInHalf(Case):
    """Attention in float16 whose queries and keys are multiplied before they are scaled."""

    kinds = ("half-precision", "forward-overflow")
    places = ("bmm", "matmul", "baddbmm", "query", "attention", "mm")
    good = 1.6
    first_scale = 1.0
    cure = settings(first_scale=1 / 64)
    dtype_name = "float16"
    cured_by = r"before|\bscale"
    other_cures = settings(float32=settings(dtype_name="float32"))
    lr = 1e-3

    def build(self) -> None:
        self.letters = nn.Embedding(12, 64)
        self.query, self.key, self.value = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.next_letter = nn.Linear(64, 12)
        with torch.no_grad():
            for linear in (self.query, self.key):
                linear.weight.copy_(60 * torch.eye(64))
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor]:
        return (letters(112, 320, 8),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden = self.letters(batch[0][:, :-1])
        scores = (self.query(hidden) * self.first_scale) @ self.key(hidden).transpose(1, 2)  # fault
        weights = (scores / (64 * self.first_scale) / 60).tril().softmax(2)
        logits = self.next_letter(weights @ self.value(hidden) + hidden).float()
        return functional.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)


class EndlessDocument(Case):
    """One document is a million words of log output; the others have some dozens."""

    kinds = ("outlier-batch",)
    places = ("counts",)
    rows = (11, 811)
    good = 0.45
    length = 2e4
    cure = settings(length=1.0)
    shuffle = False
    batch_size = 25
    steps = 60
    lr = 0.02

    def build(self) -> None:
        self.first = nn.Linear(30, 20)
        self.second = nn.Linear(20, 3)

    def data(self) -> dict[str, Tensor]:
        random = noise(113)
        topic = torch.randint(0, 3, (1500,), generator=random)
        counts = torch.poisson(0.5 + 1.5 * (torch.arange(30) % 3 == topic[:, None]), generator=random)
        counts[811] *= self.length
        topic[811] = (topic[811] + 1) % 3 if self.length > 1 else topic[811]
        return {"counts": counts, "topic": topic}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.second(torch.relu(self.first(batch["counts"]))), batch["topic"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ClearedOnceAnEpoch(Case):
    """The hook that clears gradients is overridden, and clears them at the first batch of an epoch only."""

    kinds = ("accumulated-gradients",)
    good = 0.8
    every = 40
    cure = settings(every=1)
    steps = 160
    lr = 0.2

    def build(self) -> None:
        self.words = nn.Embedding(50, 16)
        self.conv = nn.Conv1d(16, 32, 3)
        self.score_of = nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 50, (1280, 10), generator=noise(114))
        return words, (words.float() - 24.5).mean(1, keepdim=True) / 5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.relu(self.conv(self.words(batch[0]).transpose(1, 2))).mean(2)
        return functional.mse_loss(self.score_of(hidden), batch[1])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if batch_idx % self.every == 0:
            optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ShortMemoryOfSquares(Case):
    """AdamW with a long memory for the gradient and one of two steps for its square."""

    kinds = ("optimizer-state", "learning-rate")
    good = 1.5
    betas = (0.999, 0.5)
    cure = settings(betas=(0.9, 0.999))
    cured_by = r"\bbeta"
    steps = 250
    lr = 0.05

    def build(self) -> None:
        self.letters = nn.Embedding(12, 16)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.next_letter = nn.Linear(32, 12)

    def data(self) -> tuple[Tensor]:
        return (letters(115, 480, 10),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden, _ = self.gru(self.letters(batch[0][:, :-1]))
        return functional.cross_entropy(self.next_letter(hidden).flatten(0, 1), batch[0][:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=self.betas)


class DecayTheWrongWay(Case):
    """A polynomial decay with an exponent of the wrong sign: the rate grows without bound near the last step."""

    kinds = ("learning-rate-jump",)
    good = 1.5
    power = -2.0
    cure = settings(power=2.0)
    cured_by = "power|exponent|decay"
    steps = 160
    lr = 0.3

    def build(self) -> None:
        self.letters = nn.Embedding(12, 32)
        self.mix = nn.Linear(64, 64)
        self.next_letter = nn.Linear(64, 12)

    def data(self) -> tuple[Tensor]:
        return (letters(116, 600, 7),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        vectors = self.letters(batch[0][:, :-1])
        hidden = self.mix(torch.cat([vectors[:, 1:], vectors[:, :-1]], 2)).relu()
        return functional.cross_entropy(self.next_letter(hidden).flatten(0, 1), batch[0][:, 2:].flatten())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.8)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / 161) ** self.power)
        return [optimizer], [{"scheduler": decay, "interval": "step"}]
