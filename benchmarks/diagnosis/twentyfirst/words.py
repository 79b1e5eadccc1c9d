"""Words from those around them, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentieth.language import walks


class WordsFromTheirContext(Case):
    """Vectors of words from the sum of the vectors around them, with samples of other words, from a book's example.

    Report: github.com/nfmcclure/tensorflow_cookbook/issues/129. Confirmed by the author of the book: the loss is NaN
    from the first report on with the rate of the example, 0.5, and is not with half of it.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 4.5
    lr = 0.5
    cure = settings(lr=0.25)
    cured_by = r"learning rate|\blr\b"
    batch_size = 64
    steps = 600

    def build(self) -> None:
        self.embeddings = nn.Embedding(61, 64)
        nn.init.uniform_(self.embeddings.weight, -1, 1)
        self.nce_weights, self.nce_biases = nn.Embedding(61, 64), nn.Embedding(61, 1)
        nn.init.trunc_normal_(self.nce_weights.weight, std=64**-0.5)
        nn.init.zeros_(self.nce_biases.weight)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21107)
        topic = torch.randint(6, (1920, 1), generator=generator)
        rank = torch.multinomial(1 / torch.arange(1.0, 11.0), 13440, replacement=True, generator=generator)
        common = torch.rand(1920, 7, generator=generator) < 0.35
        words = torch.where(common, 60, 10 * topic + rank.view(1920, 7))
        return {"x_inputs": words[:, [0, 1, 2, 4, 5, 6]], "y_target": words[:, 3]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        embed = self.embeddings(batch["x_inputs"]).sum(1)
        sampled = torch.randint(61, (32,)).expand(len(embed), 32)
        words = torch.cat([batch["y_target"][:, None], sampled], 1)
        logits = (self.nce_weights(words) @ embed[:, :, None])[:, :, 0] + self.nce_biases(words)[:, :, 0]
        labels = functional.one_hot(torch.zeros(len(embed), dtype=torch.long), 33).float()
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LayersThatAreShared(Case):
    """Pretraining of a transformer whose layers share their weights: the loss rises suddenly, and stays.

    Report: github.com/google-research/albert/issues/29. Confirmed by a reader: with a lower rate the loss no longer
    explodes; the maintainer names the rate at that step as the cause.
    """

    kinds = ("learning-rate",)
    good = 1.2
    lr = 0.05
    cure = settings(lr=2e-3)
    batch_size = 32
    steps = 400

    def build(self) -> None:
        self.word, self.position = nn.Embedding(21, 32), nn.Embedding(12, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.predictions = nn.Linear(32, 21)

    def data(self) -> dict[str, Tensor]:
        tokens = walks(960, 12, 21108)["input_ids"]
        masked = torch.rand(960, 12, generator=noise(21109)) < 0.25
        masked[:, 0] |= ~masked.any(1)
        return {"input_ids": tokens.masked_fill(masked, 20), "labels": tokens.masked_fill(~masked, -100)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.word(batch["input_ids"]) + self.position(torch.arange(12))
        for _ in range(4):
            x = self.layer(x)
        return functional.cross_entropy(self.predictions(x).flatten(0, 1), batch["labels"].flatten())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 200))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
