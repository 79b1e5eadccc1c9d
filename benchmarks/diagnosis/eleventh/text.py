"""Language models, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Block(nn.Module):
    """A layer of a causal transformer.

    Args:
        width: Number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the features after the layer."""
        parts = self.mixed(self.before(hidden)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).flatten(2))
        return hidden + self.wide(self.after(hidden))


class LongPrompts(Case):
    """Answers to prompts are learned one by one, four for a step; of most, which are long, the answer is cut off.

    Report: github.com/AnswerDotAI/fsdp_qlora/issues/45, the second result of "fine-tuning all labels -100 truncated
    loss nan max length". Confirmed: the loss is there once the beginning is cut off instead of the end.
    """

    kinds = ("empty-reduction",)
    places = ("cross_entropy", "labels", "nll_loss")
    host = "fabric"
    good = 0.5
    cuts_end = True
    cure = settings(cuts_end=False)
    not_cured_by = (settings(lr=3e-4),)
    cured_by = "trunc|length|skip|ignore|drop|filter"
    options = settings(precision="bf16-mixed")
    batch_size = 1
    lr = 3e-3
    steps = 600
    context = 24

    def build(self) -> None:
        self.tokens, self.positions = nn.Embedding(20, 32), nn.Embedding(self.context, 32)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 20))
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        random = noise(11501)
        tokens = torch.randint(4, 20, (400, self.context), generator=random)
        labels = torch.full((400, self.context), -100)
        for row, size in enumerate(torch.randint(8, 20, (400,), generator=random).tolist()):
            is_long = row % 8 > 0
            ends = self.context if is_long and self.cuts_end else self.context - 3 if is_long else size
            answer = tokens[row, ends - 3].repeat(3)[: self.context - ends]
            tokens[row, ends - 1 : ends] = 1
            tokens[row, ends : ends + 3] = answer
            labels[row, ends : ends + 3] = answer
            tokens[row, ends + 3 :] = 0
        return {"input_ids": tokens, "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, labels = batch["input_ids"], batch["labels"]
        hidden = self.tokens(tokens) + self.positions(torch.arange(self.context))
        scores = self.head(self.blocks(hidden))
        return functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch) / 4
        watch.loss(loss)
        backward(loss)
        self.taken += 1
        if self.taken % 4 == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
