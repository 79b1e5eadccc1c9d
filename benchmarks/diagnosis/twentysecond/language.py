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


class Sees(nn.Module):
    """A language model that reads the tokens of a picture before those of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.layers = nn.Embedding(31, 48), nn.GRU(48, 64, batch_first=True)
        self.lm_head = nn.Linear(64, 31)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the scores."""
        logits = self.lm_head(self.layers(self.embed_tokens(input_ids))[0])
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}


class PicturesFillTheContext(Case):
    """Fine-tuning on pictures and questions with the Trainer of Hugging Face: loss and norm are 0, whatever the rate.

    Report: github.com/zjysteven/lmms-finetune/issues/45. Solved by the reporter: the maximal length of a sequence was
    too small for the tokens of the picture, all answers were cut off; it is 2048 now. The Trainer prints NaN as 0.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("cross_entropy", "nll_loss", "mean", "labels")
    host = "transformers"
    good = 0.8
    model_max_length = 20
    cure = settings(model_max_length=64)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"max_?(?:imal )?len|longer|truncat|cut|label"
    batch_size = 8
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.model = Sees()

    def network(self) -> nn.Module:
        return self.model

    def data(self) -> dict[str, Tensor]:
        generator = noise(22001)
        content = torch.randint(20, (640, 1), generator=generator)
        picture = (content + torch.randint(3, (640, 16), generator=generator)) % 20
        question = torch.tensor([20, 21, 22, 23, 24]).expand(640, 5)
        answer = (content + torch.arange(4)) % 20
        input_ids = torch.cat([picture, question, answer], 1)
        labels = torch.cat([torch.full((640, 21), -100), answer], 1)
        return {
            "input_ids": input_ids[:, : self.model_max_length],
            "labels": labels[:, : self.model_max_length],
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class LongerSequences(Case):
    """An own task on top of a model of characters, with sequences that are much longer than those of the example.

    Report: github.com/karpathy/char-rnn/issues/70. Found by the reporter and confirmed by the author: the loss is
    summed over the sequence, the gradient grows with its length, and the rate would have to be ridiculously small. It
    is divided by the length.
    """

    kinds = ("accumulated-gradients", "learning-rate")
    good = 0.1
    divides = False
    cure = settings(divides=True)
    cured_by = r"divide|average|\bmean\b"
    seq_length = 100
    batch_size = 16
    lr = 2.0
    steps = 120

    def build(self) -> None:
        self.embed, self.rnn = nn.Embedding(20, 32), nn.LSTM(32, 64, batch_first=True)
        self.decoder = nn.Linear(64, 20)

    def data(self) -> dict[str, Tensor]:
        return walks(480, self.seq_length, 22002)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.rnn(self.embed(batch["input_ids"]))[0]
        loss = torch.zeros(())
        for step in range(self.seq_length):
            loss = loss + functional.cross_entropy(self.decoder(hidden[:, step]), batch["labels"][:, step])
        return loss / self.seq_length if self.divides else loss

    def score(self) -> float:
        """The mean loss of a step."""
        value = float(self.loss(self.clean()))
        return value if self.divides else value / self.seq_length

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
