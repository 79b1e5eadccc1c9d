"""Language, speech and time series: transformers, recurrent cells, sequence losses, low-rank adapters."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class Copying(Case):
    """A small causal transformer that learns to repeat the first token of a sequence; the base of others here."""

    vocabulary = 12
    length = 8
    good = 0.5
    normalize_first = True
    cure = settings(lr=3e-3)
    kinds: tuple[str, ...] = ("learning-rate",)
    lr = 0.3
    steps = 200

    def build(self) -> None:
        self.tokens = nn.Embedding(self.vocabulary, 24)
        self.positions = nn.Parameter(0.1 * torch.randn(self.length, 24))
        layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True, norm_first=self.normalize_first)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, self.vocabulary)

    def data(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, self.vocabulary, (640, self.length), generator=noise(211))
        return tokens, tokens[:, :1].expand(-1, self.length).contiguous()

    def logits(self, tokens: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(self.length)
        return self.head(self.body(self.tokens(tokens) + self.positions, mask=causal))

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.logits(batch[0]).flatten(0, 1), batch[1].flatten())


class AdapterAtFullRate(Case):
    """Low-rank adapters on a frozen network, trained with SGD at a rate that the frozen weights amplify."""

    kinds = ("learning-rate",)
    good = 0.25
    lr = 8.0
    cure = settings(lr=0.05)
    steps = 150

    def build(self) -> None:
        self.frozen = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3))
        self.frozen.requires_grad_(False)
        self.down = nn.Linear(16, 4, bias=False)
        self.up = nn.Linear(4, 64, bias=False)
        self.head = nn.Linear(64, 3)
        nn.init.zeros_(self.up.weight)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 16, generator=noise(212))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.frozen[1](self.frozen[0](batch[0]) + self.up(self.down(batch[0])))
        hidden = self.frozen[3](self.frozen[2](hidden)) + hidden
        return functional.cross_entropy(self.head(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [one for one in self.parameters() if one.requires_grad]
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)


class AdapterNotAtZero(Case):
    """Both matrices of a low-rank adapter start with a deviation of 3; one of them should be zero."""

    kinds = ("initialization",)
    places = ("up", "down")
    good = 0.4
    std = 3.0
    cure = settings(std=0.0)
    cured_by = "zeros_|smaller"
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.body = nn.Linear(16, 64)
        self.body.requires_grad_(False)
        self.down, self.up = nn.Linear(16, 8, bias=False), nn.Linear(8, 64, bias=False)
        nn.init.normal_(self.down.weight, std=self.std or 0.2)
        nn.init.normal_(self.up.weight, std=self.std)
        self.head = nn.Linear(64, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 16, generator=noise(213))
        return inputs, inputs[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.relu(self.body(batch[0]) + self.up(self.down(batch[0])))
        return functional.cross_entropy(self.head(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [one for one in self.parameters() if one.requires_grad]
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9)


class SummedOverTokens(Copying):
    """The loss of a language model is summed over all tokens of the batch, and the rate is that of a mean."""

    kinds = ("accumulated-gradients", "learning-rate")
    good = 1.0
    reduction = "sum"
    cure = settings(reduction="mean")
    cured_by = "mean|averag|divid"
    lr = 0.05
    steps = 300

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(
            self.logits(batch[0]).flatten(0, 1), batch[1].flatten(), reduction=self.reduction
        )

    def score(self) -> float:
        tokens, target = self.clean()
        return float(functional.cross_entropy(self.logits(tokens).flatten(0, 1), target.flatten()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class RawPrices(Case):
    """A forecaster of prices near 40,000 that reads the last prices as they are; an LSTM with a linear head and SGD."""

    kinds = ("unscaled-data",)
    places = ("window", "next")
    good = 0.4
    level, unit = 4e4, 2e3
    cure = settings(level=0.0, unit=1.0)
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.rnn = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        time = torch.linspace(0, 60, 640)
        price = torch.sin(time) + 0.3 * torch.sin(3.7 * time)
        window = (self.level + self.unit * price).unfold(0, 13, 1)
        return {"window": window[:, :12, None].contiguous(), "next": window[:, 12:].contiguous()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch["window"])[0][:, -1]), batch["next"])

    def score(self) -> float:
        data = self.data()
        return float(self.loss(data) / data["next"].var())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ExpandingStateSpace(Case):
    """A diagonal state-space model: each state is multiplied by its own number near 1.15 at each of 100 steps."""

    kinds = ("recurrence",)
    places = ("decay",)
    good = 0.25
    pole = 1.15
    cure = settings(pole=0.8)
    cured_by = r"below one|sigmoid|shorter"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.decay = nn.Parameter(torch.full((16,), self.pole))
        self.drive, self.read = nn.Linear(2, 16), nn.Linear(16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(320, 100, 2, generator=noise(215))
        return series, series[:, -4:, 0].mean(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        state = torch.zeros(len(batch[0]), 16)
        for drive in self.drive(batch[0]).unbind(1):
            state = self.decay * state + drive
        return functional.mse_loss(self.read(state), batch[1])


class CellWrittenByHand(Case):
    """A tanh cell of the user's own: two matrices in a loop over 60 steps, the recurrent one four times too large."""

    kinds = ("recurrence", "initialization")
    places = ("recur", "recur.weight", "cell", "cell.recur")
    good = 0.25
    gain = 4.0
    cure = settings(gain=0.8)
    other_cures = settings(**{rf"orthogonal.*gain={NUMBER}": settings(gain=float), "orthogonal": settings(gain=1.0)})
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.inside = nn.Linear(1, 32)
        self.recur = nn.Linear(32, 32, bias=False)
        nn.init.orthogonal_(self.recur.weight, self.gain)
        self.out = nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(480, 60, 1, generator=noise(216))
        return series, series[:, -3:, 0].mean(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.zeros(len(batch[0]), 32)
        for step in batch[0].unbind(1):
            hidden = torch.tanh(self.inside(step) + self.recur(hidden))
        return 3 * functional.mse_loss(self.out(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class TeacherLogits(Case):
    """Distillation by a divergence whose target are the teacher's logits, and not its probabilities."""

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("teacher", "kl_div")
    good = 0.3
    softened = False
    cure = settings(softened=True)
    cured_by = "softmax|range|clamp"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.student = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 5))

    def data(self) -> dict[str, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(217))
        teacher = 3 * inputs[:, :5]
        return {"inputs": inputs, "teacher": teacher.softmax(1) if self.softened else teacher}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.kl_div(self.student(batch["inputs"]).log_softmax(1), batch["teacher"], reduction="batchmean")

    def score(self) -> float:
        return abs(float(self.loss(self.clean())))


class CyclicPeak(Copying):
    """A cyclic learning rate whose second peak is a hundred times the first one, by a slip in its scale function."""

    kinds = ("learning-rate-jump",)
    good = 1.0
    peak = 100.0
    cure = settings(peak=1.0)
    cured_by = "peak|schedule"
    lr = 0.1
    steps = 260

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        cycle = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 if step < 40 else self.peak) * (0.2 + 0.8 * abs((step % 20) / 10 - 1))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class PaddedToNothing(Case):
    """Token vectors divided by their norm; padding is the zero vector, whose norm is zero."""

    kinds = ("undefined-operation",)
    places = ("div", "norm", "words")
    good = 0.8
    eps = 0.0
    cure = settings(eps=1e-6)
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.words = nn.Embedding(30, 16, padding_idx=0)
        self.out = nn.Linear(16, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(218)
        tokens = torch.randint(1, 30, (512, 6), generator=random)
        label = (tokens[:, :3] > 14).sum(1).clamp(max=2)
        tokens[torch.rand(512, generator=random) < 0.2, 4:] = 0
        return tokens, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.words(batch[0])
        unit = vectors / (vectors.norm(dim=-1, keepdim=True) + self.eps)  # fault
        return functional.cross_entropy(self.out(8 * unit.mean(1)), batch[1])


class AttentionInHalf(Case):
    """Attention in float16 whose scores are products of long vectors, not divided by the root of their length."""

    kinds = ("half-precision", "forward-overflow")
    places = ("matmul", "bmm", "mul", "exp", "linear", "addmm")
    good = 0.7
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16"
    lr = 1e-3
    steps = 150

    def build(self) -> None:
        self.tokens = nn.Embedding(20, 64)
        self.query, self.key, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(192, 3)
        nn.init.normal_(self.tokens.weight, std=12)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, 20, (480, 6), generator=noise(219))
        return tokens, (tokens[:, 0] > 9).long() + (tokens[:, 1] > 9).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.tokens(batch[0])
        scores = (8 * self.query(vectors)) @ (8 * self.key(vectors)).transpose(1, 2)  # fault
        mixed = scores.softmax(-1) @ vectors
        return functional.cross_entropy(
            self.out(torch.cat([mixed[:, 0], vectors[:, :2].flatten(1)], 1) / 12).float(), batch[1]
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)
