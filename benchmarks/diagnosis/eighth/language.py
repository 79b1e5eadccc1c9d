"""Language models, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Reader(nn.Module):
    """A causal language model of one layer of attention.

    Args:
        words: Number of words.
        length: Number of places.
    """

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, 32), nn.Embedding(length, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, words)

    def forward(self, words: Tensor) -> Tensor:
        length = words.shape[1]
        hidden = self.words(words) + self.places(torch.arange(length))
        later = torch.full((length, length), float("-inf")).triu(1)
        return self.head(self.layer(hidden, src_mask=later))


class SumOverTokens(Case):
    """Pre-training with the sum of the losses of all tokens, which is not divided by their number."""

    # github.com/alibaba/Pai-Megatron-Patch/issues/587
    kinds = ("accumulated-gradients", "learning-rate")
    host = "plain"
    good = 1.5
    is_mean = False
    cure = settings(is_mean=True)
    cured_by = "mean|divide|average"
    batch_size = 16
    lr = 0.3
    steps = 120

    def build(self) -> None:
        self.model = Reader(20, 24)

    def data(self) -> tuple[Tensor]:
        start = torch.randint(0, 20, (320, 1), generator=noise(8301))
        return ((start + 3 * torch.arange(25)) % 20,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        scores = self.model(batch[0][:, :-1])
        losses = functional.cross_entropy(scores.flatten(0, 1), batch[0][:, 1:].flatten(), reduction="none")
        return losses.mean() if self.is_mean else losses.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def score(self) -> float:
        (words,) = self.clean()
        scores = self.model(words[:, :-1])
        return float(functional.cross_entropy(scores.flatten(0, 1), words[:, 1:].flatten()))


class TruncatedContexts(Case):
    """Tuning on answers only: where the context fills the sequence, truncation has left no label of a sample."""

    # github.com/hpcaitech/ColossalAI/issues/5370, github.com/bytedance/UniVR/issues/13
    kinds = ("empty-reduction",)
    places = ("cross_entropy", "nll_loss", "nll_loss2d", "nllloss", "criterion")
    host = "plain"
    good = 1.2
    longest = 30
    cure = settings(longest=11)
    cured_by = r"clamp|filter|\bdrop|at least|skip"
    batch_size = 2
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.model, self.criterion = Reader(20, 16), nn.CrossEntropyLoss(ignore_index=-100)

    def data(self) -> dict[str, Tensor]:
        random = noise(8302)
        words = (torch.randint(0, 20, (320, 1), generator=random) + 3 * torch.arange(17)) % 20
        context = torch.randint(2, 9, (320, 1), generator=random)
        context[::6] = self.longest
        labels = words[:, 1:].masked_fill(torch.arange(16) < context, -100)
        return {"input_ids": words[:, :-1], "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.criterion(self.model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
