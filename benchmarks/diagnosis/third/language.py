"""Words, speech and sequences: attention, recurrent networks, likelihoods of tokens, half precision."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class LostPackets(Case):
    """Readings of a sensor network over time, with NaN where a packet was lost, into a GRU."""

    kinds = ("nonfinite-input",)
    places = ("readings",)
    good = 0.3
    fill = float("nan")
    cure = settings(fill=0.0)
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.rnn, self.head = nn.GRU(3, 24, batch_first=True), nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(321)
        readings = torch.randn(512, 9, 3, generator=random)
        value = readings[:, -3:, 1].sum(1, keepdim=True) / 2
        readings[torch.rand(512, 9, 3, generator=random) < 5e-4] = self.fill
        return {"readings": readings, "value": value}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch["readings"])[0][:, -1]), batch["value"])


class NoTokenMasked(Case):
    """Masked language modelling of short sentences: in some batches chance has masked no token."""

    kinds = ("empty-reduction",)
    places = ("nll_loss", "cross_entropy", "mean")
    good = 1.2
    least = 0
    cure = settings(least=1)
    cured_by = "numel|leave|at least"
    lr = 0.01
    steps = 300
    batch_size = 8

    def build(self) -> None:
        self.words, self.mix = nn.Embedding(13, 24), nn.Linear(72, 24)
        self.head = nn.Linear(24, 12)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(322)
        first = torch.randint(0, 12, (512, 1), generator=random)
        sentence = (first + torch.arange(3)) % 12
        return sentence, torch.rand(512, 3, generator=random) < 0.12

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        sentence, masked = batch
        vectors = self.words(sentence.masked_fill(masked, 12))
        hidden = vectors + torch.tanh(self.mix(vectors.flatten(1)))[:, None]
        logits, truth = self.head(hidden)[masked], sentence[masked]
        if self.least and not len(truth):
            return 0.0 * logits.sum()
        return functional.cross_entropy(logits, truth)  # fault


class SentenceOfPadding(Case):
    """The attention of torch with a padding mask; one sentence is empty, so that all its places are padding."""

    kinds = ("undefined-operation", "nonfinite-input")
    places = ("softmax", "masked_softmax", "scaled_dot_product_attention", "attention", "bmm", "baddbmm")
    good = 0.6
    least = 0
    cure = settings(least=1)
    cured_by = "unmasked|drop"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.words = nn.Embedding(20, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(323)
        words = torch.randint(0, 20, (400, 7), generator=random)
        length = torch.randint(3, 8, (400,), generator=random)
        length[171] = self.least
        return {"words": words, "length": length, "label": (words[:, 0] > 9).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        padding = torch.arange(7) >= batch["length"][:, None]
        vectors = self.words(batch["words"])
        hidden = vectors + self.attention(vectors, vectors, vectors, key_padding_mask=padding)[0]
        return functional.cross_entropy(self.head(hidden[:, 0]), batch["label"])


class LogOfSoftmax(GradientDescent, Case):
    """A cross-entropy as the logarithm of a softmax that underflows to zero, times the one-hot target."""

    kinds = ("undefined-operation",)
    places = ("log", "mul")
    good = 0.6
    stable = False
    cure = settings(stable=True)
    cured_by = "log_softmax|clamp"
    lr = 0.2
    steps = 200

    def build(self) -> None:
        self.words, self.head = nn.EmbeddingBag(40, 24), nn.Linear(24, 5)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 40, (640, 4), generator=noise(324))
        return words, words[:, 0] // 8

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = 80 * self.head(self.words(batch[0]))
        target = functional.one_hot(batch[1], 5).float()
        logarithm = logits.log_softmax(1) if self.stable else torch.log(logits.softmax(1))  # fault
        return -(target * logarithm).sum(1).mean() / 80

    def score(self) -> float:
        words, label = self.clean()
        return float(functional.cross_entropy(80 * self.head(self.words(words)), label)) / 80


class TwoMasksInHalf(Case):
    """Two masks of padding, each the lowest float16 number: their sum is minus infinity for an empty document."""

    kinds = ("half-precision", "undefined-operation")
    places = ("softmax", "add")
    good = 0.7
    lowest = -65504.0
    cure = settings(lowest=-1e4)
    cured_by = "float32|bfloat16|bf16|unmasked"
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.words, self.query = nn.Embedding(16, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 2)
        self.half()

    def data(self) -> dict[str, Tensor]:
        random = noise(325)
        words = torch.randint(0, 16, (480, 6), generator=random)
        length = torch.randint(2, 7, (480,), generator=random)
        length[torch.rand(480, generator=random) < 0.02] = 0
        return {"words": words, "length": length, "label": (words[:, 0] > 7).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        vectors = self.words(batch["words"])
        padding = (torch.arange(6) >= batch["length"][:, None]) * self.lowest
        empty = (batch["length"] == 0)[:, None, None] * self.lowest
        scores = self.query(vectors) @ vectors.transpose(1, 2) / 5 + padding[:, None].half() + empty.half()  # fault
        mixed = scores.softmax(-1) @ vectors + vectors
        return functional.cross_entropy(self.head(mixed)[:, 0].float(), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)


class EpsilonLostInHalf(Case):
    """Vectors of words over their norm plus 1e-8, which is zero in float16; the unknown word is the zero vector."""

    kinds = ("half-precision", "undefined-operation")
    places = ("div", "norm", "words")
    good = 0.7
    eps = 1e-8
    cure = settings(eps=1e-3)
    cured_by = r"float32|bfloat16|bf16|\beps\b|clamp|away from"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.words, self.head = nn.Embedding(24, 16, padding_idx=0), nn.Linear(16, 2)
        self.half()

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(326)
        words = torch.randint(1, 24, (480, 5), generator=random)
        label = (words[:, 0] > 11).long()
        words[torch.rand(480, generator=random) < 0.03, 3] = 0
        return words, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.words(batch[0])
        unit = vectors / (vectors.norm(dim=-1, keepdim=True) + self.eps)  # fault
        return functional.cross_entropy(self.head(unit[:, 0] * 4 + unit.mean(1)).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)


class GradientsBelowHalf(GradientDescent, Case):
    """A float16 network whose loss is divided by three million samples: every gradient is zero."""

    kinds = ("half-precision",)
    good = 0.5
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|GradScaler|16-mixed|scale the loss"
    lr = 6e4
    momentum = 0.9
    steps = 300

    def build(self) -> None:
        self.words, self.head = nn.Embedding(20, 16), nn.Linear(16, 2)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 20, (480, 4), generator=noise(327))
        return words, (words[:, 0] > 9).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.head(self.words(batch[0]).flatten(1)[:, :16])
        return functional.cross_entropy(logits.float(), batch[1]) / 3e6

    def score(self) -> float:
        return float(self.loss(self.clean())) * 3e6


class AdagradAtTwenty(Case):
    """A bag of words with Adagrad, at a learning rate of twenty."""

    kinds = ("learning-rate",)
    good = 0.6
    lr = 20.0
    cure = settings(lr=0.1)
    steps = 200

    def build(self) -> None:
        self.words = nn.EmbeddingBag(60, 32)
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 60, (640, 5), generator=noise(328))
        return words, (words.float().mean(1, keepdim=True) - 30) / 8

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(self.words(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adagrad(self.parameters(), lr=self.lr)


class RecurrentAtAHundred(GradientDescent, Case):
    """A language model with an LSTM and a rate of a hundred that belongs to clipped gradients; they are not clipped."""

    kinds = ("learning-rate",)
    good = 0.4
    momentum = 0.9
    lr = 100.0
    cure = settings(lr=0.3)
    steps = 250

    def build(self) -> None:
        self.words = nn.Embedding(12, 24)
        self.rnn, self.head = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 12)

    def data(self) -> tuple[Tensor]:
        random = noise(329)
        start = torch.randint(0, 12, (512, 1), generator=random)
        step = torch.randint(1, 4, (512, 1), generator=random)
        return ((start + step * torch.arange(10)) % 12,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        words = batch[0]
        hidden = self.rnn(self.words(words[:, :-1]))[0]
        return functional.cross_entropy(self.head(hidden).flatten(0, 1), words[:, 1:].flatten())


class UnitTransformer(GradientDescent, Case):
    """Every matrix of a transformer without normalization is drawn with a deviation of one."""

    kinds = ("initialization",)
    places = ("query", "up", "down", "head")
    good = 0.6
    std = 1.0
    cure = settings(std=0.1)
    lr = 0.05
    momentum = 0.9
    steps = 200

    def build(self) -> None:
        self.words = nn.Embedding(18, 48)
        self.query, self.key = nn.Linear(48, 48), nn.Linear(48, 48)
        self.up, self.down, self.head = nn.Linear(48, 192), nn.Linear(192, 48), nn.Linear(48, 3)
        for layer in (self.query, self.key, self.up, self.down, self.head):
            nn.init.normal_(layer.weight, std=self.std)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 18, (512, 6), generator=noise(330))
        return words, words[:, 0] // 6

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.words(batch[0])
        scores = self.query(vectors) @ self.key(vectors).transpose(1, 2) / math.sqrt(48)
        hidden = vectors + scores.softmax(-1) @ vectors
        hidden = hidden + self.down(functional.gelu(self.up(hidden)))
        return functional.cross_entropy(self.head(hidden[:, 0]), batch[1])


class BlocksWithoutNorm(GradientDescent, Case):
    """Thirty transformer blocks without any normalization, whose branches are added at full size."""

    kinds = ("depth",)
    good = 0.6
    normalize = False
    cure = settings(normalize=True)
    cured_by = "zero-init|residual"
    lr = 0.05
    steps = 120

    def build(self) -> None:
        self.words = nn.Embedding(12, 24)
        self.up = nn.ModuleList(nn.Linear(24, 96) for _ in range(30))
        self.down = nn.ModuleList(nn.Linear(96, 24) for _ in range(30))
        for layer in (*self.up, *self.down):
            nn.init.kaiming_normal_(layer.weight)
        self.norm = nn.LayerNorm(24) if self.normalize else nn.Identity()
        self.head = nn.Linear(24, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 12, (512, 4), generator=noise(331))
        return words, (words[:, 0] > 5).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.words(batch[0])
        for up, down in zip(self.up, self.down, strict=True):
            normal = self.norm(hidden)
            mixed = normal + normal.mean(1, keepdim=True)
            hidden = hidden + down(torch.relu(up(mixed))) / (5 if self.normalize else 1)
        return functional.cross_entropy(self.head(self.norm(hidden)[:, 0]), batch[1])


class ElmanOverTwoHundred(GradientDescent, Case):
    """A tanh network of torch over 200 steps, whose recurrent matrix has a radius of 1.9."""

    kinds = ("recurrence",)
    places = ("rnn", "rnn.weight_hh_l0")
    good = 0.25
    radius = 1.9
    cure = settings(radius=0.8)
    cured_by = "gated|LSTM|GRU"
    other_cures = settings(
        **{rf"orthogonal.*gain={NUMBER}": settings(radius=float), "orthogonal": settings(radius=1.0)}
    )
    lr = 0.05
    momentum = 0.9
    steps = 150

    def build(self) -> None:
        self.rnn, self.out = nn.RNN(1, 32, batch_first=True), nn.Linear(32, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, self.radius)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(320, 200, 1, generator=noise(332))
        return series, series[:, -3:, 0].sum(1, keepdim=True) / 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(self.rnn(batch[0])[0][:, -1]), batch[1])


class CellInALoop(Case):
    """A rectified cell of torch, called in a loop over 70 steps; its matrix is 1.3 times the identity."""

    kinds = ("recurrence",)
    places = ("cell", "cell.weight_hh")
    good = 0.25
    radius = 1.3
    cure = settings(radius=0.7)
    cured_by = "gated|LSTM|GRU"
    other_cures = settings(
        **{rf"orthogonal.*gain={NUMBER}": settings(radius=float), "orthogonal": settings(radius=1.0)}
    )
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.cell, self.out = nn.RNNCell(2, 24, nonlinearity="relu"), nn.Linear(24, 1)
        with torch.no_grad():
            self.cell.weight_hh.copy_(self.radius * torch.eye(24))

    def data(self) -> dict[str, Tensor]:
        signal = torch.randn(320, 70, 2, generator=noise(333))
        return {"signal": signal, "goal": signal[:, -2:, 0].sum(1, keepdim=True)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.zeros(len(batch["signal"]), 24)
        for step in batch["signal"].unbind(1):
            hidden = self.cell(step, hidden)
        return functional.mse_loss(self.out(hidden), batch["goal"])


class GatesAtThree(GradientDescent, Case):
    """All weights of an LSTM are drawn evenly from -6 to 6, and all its gates are saturated."""

    kinds = ("initialization",)
    places = ("rnn",)
    good = 0.3
    reach = 6.0
    cure = settings(reach=0.2)
    lr = 0.2
    momentum = 0.9
    steps = 250

    def build(self) -> None:
        self.rnn, self.head = nn.LSTM(3, 24, batch_first=True), nn.Linear(24, 1)
        for parameter in self.rnn.parameters():
            nn.init.uniform_(parameter, -self.reach, self.reach)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(512, 10, 3, generator=noise(334))
        return series, series[:, -2:, 0].sum(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch[0])[0][:, -1]), batch[1])
