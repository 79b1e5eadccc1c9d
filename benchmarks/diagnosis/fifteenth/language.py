"""Language models, and the buffers of their gradients, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.diagnosis.case import Case, noise, settings


class StopToken(Case):
    """A language model with a penalty for stopping too early or too late, by logarithms of a softmax.

    Report: foreai.co/blog/nans-out-of-nowhere-the-trick-that-saved-my-training-run. Confirmed by the author: the
    logarithm of one minus a softmax is unbounded once the model is sure; it is computed from the scores instead.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.05
    from_scores = False
    cure = settings(from_scores=True)
    cured_by = r"logsumexp|log_softmax|scores|logits"
    batch_size = 32
    lr = 3e-2
    steps = 300

    def build(self) -> None:
        self.embed = nn.Embedding(12, 32)
        self.rnn, self.norm = nn.GRU(32, 192, batch_first=True), nn.LayerNorm(192)
        self.lm_head = nn.Linear(192, 12)

    def data(self) -> tuple[Tensor]:
        start = torch.randint(2, 11, (1024, 1), generator=noise(15201))
        return ((start - torch.arange(10)).clamp(min=0),)

    def logits(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.rnn(self.embed(tokens[:, :-1]))[0]))

    def penalty(self, logits: Tensor, should_stop: Tensor) -> Tensor:
        if self.from_scores:
            everything = logits.logsumexp(-1)
            log_eos, log_not_eos = logits[..., 0] - everything, logits[..., 1:].logsumexp(-1) - everything
        else:
            prob_eos = logits.softmax(-1)[..., 0]
            log_eos, log_not_eos = torch.log(prob_eos), torch.log(1 - prob_eos)  # fault
        return -(should_stop * log_eos + (1 - should_stop) * log_not_eos).mean()

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (tokens,) = batch
        logits, targets = self.logits(tokens), tokens[:, 1:]
        ce = functional.cross_entropy(logits.mT, targets)
        return ce + 0.5 * self.penalty(logits, (targets == 0).float())

    def score(self) -> float:
        (tokens,) = self.clean()
        return float(functional.cross_entropy(self.logits(tokens).mT, tokens[:, 1:]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PeakRate(Case):
    """A masked language model with a warm-up to a large rate, from which it falls in a line.

    Report: github.com/facebookresearch/fairseq/issues/1533 and issues/1904. Confirmed by the maintainer and a reader:
    the loss suddenly rises to that of a model that has learned nothing; a lower peak of the rate is fine.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.6
    lr = 1.5e-2
    cure = settings(lr=3e-3)
    cured_by = r"\bpeak"
    batch_size = 32
    steps = 390

    def build(self) -> None:
        self.embed, self.position = nn.Embedding(13, 32), nn.Embedding(12, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(6)
        )
        self.lm_head = nn.Linear(32, 12)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15202)
        tokens = (
            torch.randint(12, (1024, 1), generator=generator)
            + torch.randint(1, 5, (1024, 1), generator=generator) * torch.arange(12)
        ) % 12
        return {"tokens": tokens, "masked": torch.rand(1024, 12, generator=generator) < 0.2}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.embed(batch["tokens"].masked_fill(batch["masked"], 12)) + self.position.weight
        for layer in self.layers:
            x = layer(x)
        return functional.cross_entropy(self.lm_head(x)[batch["masked"]], batch["tokens"][batch["masked"]])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
        schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 40, (440 - step) / 400))
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Assistant(nn.Module):
    """A small language model that learns the answers of an assistant only.

    Args:
        size: Number of tokens.
        skips_empty: Whether a batch without answers has a loss of zero.
    """

    def __init__(self, size: int, skips_empty: bool) -> None:
        super().__init__()
        self.embed, self.rnn, self.lm_head = (
            nn.Embedding(size, 32),
            nn.GRU(32, 64, batch_first=True),
            nn.Linear(64, size),
        )
        self.skips_empty = skips_empty

    def forward(self, input_ids: Tensor, label_masks: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss and the scores."""
        logits = self.lm_head(self.rnn(self.embed(input_ids))[0])
        if self.skips_empty and not label_masks.any():
            return {"loss": logits.sum() * 0.0, "logits": logits}
        loss = functional.cross_entropy(logits[label_masks], targets[label_masks])
        return {"loss": loss, "logits": logits}


class NobodyAnswers(Case):
    """An assistant is tuned on dialogues by the Trainer of Hugging Face; cut dialogues hold questions only.

    Report: github.com/LAION-AI/Open-Assistant/pull/2001. Confirmed and fixed: the loss is NaN where the whole input is
    masked.
    """

    kinds = ("empty-reduction",)
    places = ("cross_entropy", "nll_loss", "mean")
    host = "transformers"
    good = 0.3
    skips_empty = False
    cure = settings(skips_empty=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"empty|without|zero|clamp|filter|drop|skip"
    batch_size = 2
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.model = Assistant(16, self.skips_empty)

    def network(self) -> nn.Module:
        return self.model

    def data(self) -> dict[str, Tensor]:
        generator = noise(15203)
        start = torch.randint(0, 16, (512, 1), generator=generator)
        tokens = (start + torch.randint(1, 3, (512, 1), generator=generator) * torch.arange(13)) % 16
        masks = torch.arange(12).expand(512, 12) >= torch.randint(3, 8, (512, 1), generator=generator)
        masks = masks & (torch.rand(512, 1, generator=generator) > 0.12)
        return {"input_ids": tokens[:, :-1], "label_masks": masks, "targets": tokens[:, 1:]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class UninitializedBuffers(Case):
    """A language model whose gradients are summed over eight batches in buffers of the user's own, made empty.

    Report: github.com/paiml/entrenar/pull/257. Confirmed and fixed: the memory of the accumulator is whatever was there
    before, and the first step is corrupted by it; the buffers are set to zero when they are made.
    """

    kinds = ("accumulated-gradients", "optimizer-state")
    host = "plain"
    good = 0.6
    zeros = False
    cure = settings(zeros=True)
    cured_by = r"zero|clear|buffer"
    batch_size = 16
    lr = 1e-2
    steps = 390

    def build(self) -> None:
        self.embed, self.rnn, self.lm_head = nn.Embedding(12, 32), nn.GRU(32, 32, batch_first=True), nn.Linear(32, 12)
        self.grad_accum: list[Tensor] = []
        self.micro_step = 0

    def data(self) -> tuple[Tensor]:
        generator = noise(15204)
        start = torch.randint(12, (1024, 1), generator=generator)
        return ((start + torch.randint(1, 5, (1024, 1), generator=generator) * torch.arange(10)) % 12,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (tokens,) = batch
        logits = self.lm_head(self.rnn(self.embed(tokens[:, :-1]))[0])
        return functional.cross_entropy(logits[:, 1:].mT, tokens[:, 2:])

    def new_buffers(self) -> list[Tensor]:
        if self.zeros:
            return [torch.zeros_like(p) for p in self.parameters()]
        # What such memory holds differs from run to run, so that it is written here.
        generator = noise(15205)
        return [1e3 * torch.randn(p.shape, generator=generator) for p in self.parameters()]

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if not self.grad_accum:
            self.grad_accum = self.new_buffers()
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        for p, buffer in zip(self.parameters(), self.grad_accum, strict=True):
            buffer.add_(p.grad)
        self.micro_step += 1
        if self.micro_step % 8 == 0:
            for p, buffer in zip(self.parameters(), self.grad_accum, strict=True):
                p.grad.copy_(buffer / 8)
                buffer.zero_()
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
