"""Language models in half precision, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Scaled(Case):
    """A loop with a scaler of the loss, for models in half precision."""

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu")

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Gated(nn.Module):
    """A gated unit between two layers, as large language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
        self.down_proj = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class SpeechFromAPretrainedModel(Scaled):
    """Speech tokens by a language model that was trained in another format before, with `use_fp16`.

    Report: github.com/yanghaha0908/EmoVoice/issues/5. Solved by a reader: the input of the language model is fine and
    all of its outputs are NaN, until `use_fp16` is false. The pretrained model has few units of a very large value.
    """

    kinds = ("half-precision",)
    places = ("mlp", "down_proj", "mul")
    host = "plain"
    good = 1.2
    use_fp16 = True
    cure = settings(use_fp16=False)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 16
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        super().build()
        self.embed_tokens = nn.Embedding(24, 32)
        self.norms = nn.ModuleList(nn.RMSNorm(32) for _ in range(3))
        self.rnns = nn.ModuleList(nn.GRU(32, 32, batch_first=True) for _ in range(2))
        self.mlp = nn.ModuleList(Gated() for _ in range(2))
        self.lm_head = nn.Linear(32, 24, bias=False)
        with torch.no_grad():
            self.norms[1].weight.fill_(8.0)
            for projection in (self.mlp[1].gate_proj, self.mlp[1].up_proj):
                projection.weight[7] = torch.linspace(4.0, 8.0, 32)
            self.mlp[1].down_proj.weight[:, 7] *= 1e-5

    def data(self) -> dict[str, Tensor]:
        generator = noise(19101)
        step = torch.randint(1, 4, (640, 1), generator=generator)
        start = torch.randint(24, (640, 1), generator=generator)
        tokens = (start + step * torch.arange(13)) % 24
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}

    def llm(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for norm, rnn, mlp in zip(self.norms, self.rnns, self.mlp, strict=False):
            x = x + rnn(x)[0]
            x = x + mlp(norm(x))
        return self.lm_head(self.norms[2](x))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.use_fp16):
            logits = self.llm(batch["input_ids"])
        return functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())


class MaskOfTenBillion(Scaled):
    """A language model whose attention is masked with 1e10, in mixed precision.

    Report: github.com/openai/gpt-2/pull/122. Found by the author of the change: the number is more than the format
    holds, and with 1e4 the model trains in mixed precision.
    """

    kinds = ("half-precision",)
    places = ("mul", "sub", "mask_attn_weights")
    host = "plain"
    good = 0.5
    large = 1e10
    cure = settings(large=1e4)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"1e4|finfo|smaller|masked_fill"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        super().build()
        self.wte, self.wpe = nn.Embedding(20, 32), nn.Embedding(12, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(5))
        self.c_attn = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.c_proj = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19102)
        step = torch.randint(1, 4, (640, 1), generator=generator)
        start = torch.randint(20, (640, 1), generator=generator)
        return {"tokens": (start + step * torch.arange(13)) % 20}

    def mask_attn_weights(self, w: Tensor) -> Tensor:
        b = torch.ones(12, 12, dtype=w.dtype).tril()
        return w * b - torch.tensor(self.large).to(w.dtype) * (1 - b)  # fault

    def block(self, i: int, x: Tensor) -> Tensor:
        q, k, v = self.c_attn[i](self.norms[2 * i](x)).unflatten(2, (2, 48)).transpose(1, 2).chunk(3, 3)
        w = self.mask_attn_weights(q @ k.mT / 4)
        x = x + self.c_proj[i]((w.softmax(3) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp[i](self.norms[2 * i + 1](x))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        tokens = batch["tokens"]
        with torch.autocast("cpu", torch.float16):
            x = self.wte(tokens[:, :-1]) + self.wpe(torch.arange(12))
            for i in range(2):
                x = self.block(i, x)
            logits = self.norms[4](x) @ self.wte.weight.T
        each = functional.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
        return each[:, 2:].mean()
