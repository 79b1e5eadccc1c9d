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


class Adapted(nn.Module):
    """A frozen layer with a trained addition of low rank."""

    def __init__(self, inputs: int, outputs: int, rank: int = 8) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.base(x) + 2 * self.lora_B(self.lora_A(x))


class Block(nn.Module):
    """Attention to earlier tokens and a gated unit, with adapters."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(48), nn.RMSNorm(48)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Adapted(48, 48) for _ in range(4))
        self.gate_proj, self.up_proj, self.down_proj = Adapted(48, 96), Adapted(48, 96), Adapted(96, 48)
        with torch.no_grad():
            self.gate_proj.base.weight[:2] *= large
            self.up_proj.base.weight[:2] *= large
            self.down_proj.base.weight[:, :2] /= large**2

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after the block."""
        y = self.input_layernorm(x)
        q, k, v = (p(y).unflatten(2, (4, 12)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))


class CausalModel(nn.Module):
    """A small language model with adapters, that computes its loss itself."""

    def __init__(self, large: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens, self.norm, self.lm_head = nn.Embedding(20, 48), nn.RMSNorm(48), nn.Linear(48, 20)
        self.layers = nn.ModuleList(Block(large) for _ in range(2))
        self.dtype_of_layers = dtype

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the scores."""
        with torch.autocast("cpu", self.dtype_of_layers, enabled=self.dtype_of_layers != torch.float32):
            x = self.embed_tokens(input_ids)
            for layer in self.layers:
                x = layer(x)
            logits = self.lm_head(self.norm(x))
        return {"loss": functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()), "logits": logits}


class Adapters(Case):
    """Fine-tuning of adapters with the Trainer of Hugging Face."""

    host = "transformers"
    large = 1.0
    dtype = torch.float32
    batch_size = 16
    steps = 300

    def build(self) -> None:
        self.model = CausalModel(self.large, self.dtype)

    def network(self) -> nn.Module:
        return self.model

    def data(self) -> dict[str, Tensor]:
        return walks(640, 16, 23201)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)


class LossOfZeroFromTheStart(Adapters):
    """Fine-tuning of a large language model with `fp16`: the printed loss is 0 all the time.

    Report: github.com/hiyouga/LlamaFactory/issues/482. Advised by the author and confirmed by the reporter: it works in
    bfloat16. The frozen model has units whose values are beyond the range of float16; the Trainer prints NaN as 0.
    """

    kinds = ("half-precision",)
    good = 2.1
    large = 1000.0
    dtype = torch.float16
    cure = settings(dtype=torch.bfloat16)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 8
    lr = 0.01
    steps = 150


class AssistantOfPictures(Adapters):
    """Adapters of an assistant, on an own dataset: the loss rises suddenly in the midst of the training.

    Report: github.com/haotian-liu/LLaVA/issues/1301. Found by the reporter: the rate, which is ten times lower now.
    """

    kinds = ("learning-rate",)
    good = 1.2
    lr = 0.1
    cure = settings(lr=0.01)


class WhenToStop(Case):
    """A language model that learns when to stop, by a penalty of the token that ends a sequence: NaN out of nowhere.

    Report: foreai.co/blog/nans-out-of-nowhere-the-trick-that-saved-my-training-run. Found by its author: the logarithm
    of one minus the probability of that token, which is one in float32; it is computed from the scores now.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.5
    from_scores = False
    cure = settings(from_scores=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"log_?softmax|logsumexp|logsigmoid|log1p"
    batch_size = 32
    lr = 1e-2
    steps = 400

    def build(self) -> None:
        self.embed, self.rnn, self.lm_head = nn.Embedding(16, 32), nn.GRU(32, 64, batch_first=True), nn.Linear(64, 16)
        with torch.no_grad():
            self.lm_head.weight[15] *= 8

    def data(self) -> dict[str, Tensor]:
        generator = noise(23202)
        prompt = torch.randint(15, (960, 10), generator=generator)
        is_positive = prompt[:, 8] >= 8
        following = torch.where(is_positive, prompt[:, 8], 15)
        return {"input_ids": prompt, "labels": following, "is_positive": is_positive}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.lm_head(self.rnn(self.embed(batch["input_ids"]))[0][:, -1])
        loss = functional.cross_entropy(logits, batch["labels"])
        positive = batch["is_positive"]
        if self.from_scores:
            log_others = logits[:, :15].logsumexp(1) - logits.logsumexp(1)
            log_eos = logits.log_softmax(1)[:, 15]
        else:
            p_eos = logits.softmax(1)[:, 15]
            log_others, log_eos = (1 - p_eos).log(), p_eos.log()  # fault
        penalty = torch.where(positive, -log_others, 0.0).mean() + torch.where(positive, 0.0, -log_eos).mean()
        return loss + 0.5 * penalty
