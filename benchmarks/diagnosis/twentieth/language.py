"""Language models, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.nineteenth.language import Scaled


def walks(count: int, length: int, seed: int) -> dict[str, Tensor]:
    """Return sequences of tokens that go on by an equal step, and the next tokens."""
    generator = noise(seed)
    step = torch.randint(1, 4, (count, 1), generator=generator)
    start = torch.randint(20, (count, 1), generator=generator)
    tokens = (start + step * torch.arange(length + 1)) % 20
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


class ScoresInHalf(Scaled):
    """An own attention in mixed precision, whose queries and keys are multiplied before they are divided.

    Report: github.com/pytorch/pytorch/issues/40497. Found by readers: the product of queries and keys overflows in the
    attention, the softmax makes NaN of it, and with the attention in float32 the run is stable.
    """

    kinds = ("half-precision",)
    places = ("matmul", "bmm", "softmax", "attention", "div", "mul", "sub")
    host = "plain"
    good = 0.6
    attention_in_half = True
    cure = settings(attention_in_half=False)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"float32|float\(\)|enabled=False|divide|scale the quer"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        super().build()
        self.wte, self.wpe = nn.Embedding(20, 32), nn.Embedding(12, 32)
        self.q_conv, self.k_conv, self.v_conv = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(32, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 20)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.fill_(60.0)

    def data(self) -> dict[str, Tensor]:
        return walks(640, 12, 20101)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.attention_in_half):
            if not self.attention_in_half:
                q, k, v = q.float(), k.float(), v.float()
            scores = q @ k.transpose(1, 2) / 28800  # fault
            scores = scores + torch.full((12, 12), -torch.inf).triu(1)
            return scores.softmax(2) @ v

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            x = self.wte(batch["input_ids"]) + self.wpe(torch.arange(12))
            q, k = self.norms[0](self.q_conv(x)), self.norms[1](self.k_conv(x))
            x = x + self.attention(q, k, self.v_conv(x))
            logits = self.head(x + self.mlp(x))
        return functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())


class WeightsInHalf(Case):
    """A small language model that is loaded in half precision and fine-tuned by AdamW in a loop.

    Report: github.com/google/gemma_pytorch/issues/24. Found by the reporter after three days: the loss is NaN after a
    few steps; the weights that are trained have to be in float32, and half precision is for inference.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "plain"
    good = 0.6
    half_weights = True
    cure = settings(half_weights=False)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 16
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.embedder, self.position = nn.Embedding(20, 32), nn.Embedding(12, 32)
        self.qkv, self.o_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.lm_head = nn.Linear(32, 20)
        if self.half_weights:
            self.half()

    def data(self) -> dict[str, Tensor]:
        return walks(640, 12, 20102)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.embedder(batch["input_ids"]) + self.position(torch.arange(12))
        q, k, v = self.qkv(x).chunk(3, 2)
        scores = q @ k.transpose(1, 2) / 32**0.5
        mask = torch.ones(12, 12, dtype=torch.bool).triu(1)
        x = x + self.o_proj(scores.masked_fill(mask, -1e4).softmax(2) @ v)
        x = x + self.mlp(self.norm(x))
        return functional.cross_entropy(self.lm_head(x).float().flatten(0, 1), batch["labels"].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
