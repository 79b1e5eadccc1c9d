"""Runs of the Trainer of transformers, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.case import Case, noise, settings


class LanguageModel(Case):
    """A small language model of the library, trained by its Trainer; the base of cases."""

    host = "transformers"
    batch_size = 8
    lr = 3e-3
    steps = 60
    good = 2.2

    model: nn.Module

    def build(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 20}
        self.model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))

    def network(self) -> nn.Module:
        return self.model

    def data(self) -> dict[str, Tensor]:
        start = torch.randint(0, 20, (320, 1), generator=noise(531))
        ids = (start + 3 * torch.arange(12)) % 20
        return {"input_ids": ids, "labels": ids.clone()}

    def loss(self, batch: Any) -> Tensor:
        return self.model(**batch).loss.float()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr)


class NothingButPrompts(LanguageModel):
    """Tuning with the prompt left out of the loss; truncation has left nothing but the prompt of many samples."""

    kinds = ("empty-reduction",)
    prompt = 12
    batch_size = 4
    cure = settings(prompt=6)
    cured_by = "clamp|filter|drop"

    def data(self) -> dict[str, Tensor]:
        fields = super().data()
        fields["labels"][:, :6] = -100
        fields["labels"][120:, : self.prompt] = -100
        return fields


class TunedInFloat16(LanguageModel):
    """A model that was loaded in float16 is tuned with AdamW and its default epsilon, which is zero there."""

    kinds = ("half-precision",)
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16|eps"

    def build(self) -> None:
        super().build()
        self.model.to(getattr(torch, self.dtype_name))


class RateOfOne(LanguageModel):
    """A rate of one from a configuration file for another optimizer, without the Trainer's clipping."""

    kinds = ("learning-rate",)
    cure = settings(lr=3e-3)
    lr = 1.0
    options = settings(max_grad_norm=0.0)
