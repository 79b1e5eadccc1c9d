"""Language models, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentieth.language import walks
from benchmarks.diagnosis.twentythird.language import Adapters


class LossThatComesBack(Adapters):
    """Adapters of an assistant of pictures: the loss falls at first, then it is high and stays there.

    Report: github.com/haotian-liu/LLaVA/issues/1375. Found by a reader: a rate that is lower by ten. It is warmed up.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    good = 1.2
    lr = 0.1
    cure = settings(lr=0.01)
    steps = 400

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 120)
        return {"optimizer": optimizer, "lr_scheduler": warm_up}


class AllInBfloat16(Case):
    """Fine-tuning of all weights of a language model in bfloat16, in a loop of its own: the loss stays much higher.

    Report: github.com/meta-pytorch/torchtune/issues/2254. Found by the reporter: the same recipe in float32 converges.
    """

    kinds = ("half-precision",)
    host = "plain"
    good = 0.2
    dtype = torch.bfloat16
    cure = settings(dtype=torch.float32)
    cured_by = r"float32"
    batch_size = 32
    lr = 1e-4
    steps = 1500

    def build(self) -> None:
        self.tok_embeddings, self.norm = nn.Embedding(20, 48), nn.LayerNorm(144)
        self.mlp, self.output = nn.Sequential(nn.Linear(144, 192), nn.GELU(), nn.Linear(192, 144)), nn.Linear(144, 20)
        self.to(self.dtype)

    def data(self) -> dict[str, Tensor]:
        tokens = walks(960, 3, 24501)
        return {"tokens": tokens["input_ids"], "labels": tokens["labels"][:, -1]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.tok_embeddings(batch["tokens"]).flatten(1)
        return functional.cross_entropy(self.output(x + self.mlp(self.norm(x))).float(), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)


class ThreeClassesOfTexts(Case):
    """Classes of texts by a model whose weights are in half precision, with a usual optimizer: the loss is NaN.

    Report: github.com/ThilinaRajapakse/simpletransformers/issues/100. Confirmed by the reporter: without half precision
    it works. The level was O3, at which weights and optimizer are in half precision.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "plain"
    good = 0.3
    fp16 = True
    cure = settings(fp16=False)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"float32|\beps"
    batch_size = 16
    lr = 1e-3
    steps = 200

    def build(self) -> None:
        self.word_embeddings, self.lstm = nn.Embedding(60, 32), nn.Linear(32, 64)
        self.norm, self.classifier = nn.LayerNorm(64), nn.Linear(64, 3)
        if self.fp16:
            self.half()

    def data(self) -> dict[str, Tensor]:
        generator = noise(24502)
        label = torch.randint(3, (640,), generator=generator)
        common = torch.randint(30, (640, 10), generator=generator)
        telling = 30 + 10 * label[:, None] + torch.randint(10, (640, 10), generator=generator)
        tokens = torch.where(torch.rand(640, 10, generator=generator) < 0.7, common, telling)
        return {"input_ids": tokens, "labels": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = functional.gelu(self.lstm(self.word_embeddings(batch["input_ids"]))).mean(1)
        return functional.cross_entropy(self.classifier(self.norm(x)), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, eps=1e-8)
