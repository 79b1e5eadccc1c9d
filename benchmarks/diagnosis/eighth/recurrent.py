"""Recurrent networks over long, loud or empty series."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class ProjectedCell(nn.Module):
    """A long short-term memory whose output is projected, with the weights of a published example.

    Args:
        inputs: Size of an input.
        memory: Size of the memory.
        outputs: Size of the output.
        spread: Standard deviation of the weights.
    """

    def __init__(self, inputs: int, memory: int, outputs: int, spread: float) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(spread * torch.randn(4 * memory, inputs))
        self.weight_hh = nn.Parameter(spread * torch.randn(4 * memory, outputs))
        self.weight_hr = nn.Parameter(spread * torch.randn(outputs, memory))
        self.bias = nn.Parameter(torch.zeros(4 * memory))

    def forward(self, series: Tensor) -> Tensor:
        inside = series @ self.weight_ih.T + self.bias
        output = inside.new_zeros(len(series), self.weight_hr.shape[0])
        memory = inside.new_zeros(len(series), self.weight_hr.shape[1])
        for one in inside.unbind(1):
            enter, forget, cell, leave = (one + output @ self.weight_hh.T).chunk(4, 1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * cell.tanh()
            output = (leave.sigmoid() * memory.tanh()) @ self.weight_hr.T
        return output


class LongProjectedSeries(Case):
    """A projected memory over thirty steps, with the normal weights of the example; clipping to one cures it."""

    # github.com/Marcovaldong/lstmp.pytorch/issues/2
    kinds = ("recurrence", "initialization", "learning-rate")
    good = 0.75
    spread = 0.4
    cure = settings(options=settings(gradient_clip_val=1.0))
    other_cures = settings(**{"initiali[sz]|xavier|orthogonal": settings(spread=0.2)})
    cured_by = "clip|shorter"
    lr = 0.3
    steps = 90

    def build(self) -> None:
        self.cell = ProjectedCell(6, 24, 12, self.spread)
        self.head = nn.Linear(12, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(811)
        series = torch.randn(480, 30, 6, generator=random)
        return series, series[:, -6:, :4].sum(1).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.cell(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TranscriptsOfFastSpeakers(Case):
    """Speech with a connectionist loss: a few transcripts are longer than their frames after subsampling."""

    # github.com/espnet/espnet/issues/3170, github.com/espnet/espnet/issues/186
    kinds = ("target-out-of-range",)
    rows = (9, 201)
    good = 8.0
    longest = 9
    cure = settings(longest=5)
    cured_by = "zero_infinity|longer|shorter|length"
    shuffle = False
    lr = 5e-3
    steps = 100

    def build(self) -> None:
        self.subsampling = nn.Sequential(nn.Conv1d(6, 24, 3, 2, 1), nn.ReLU(), nn.Conv1d(24, 24, 3, 2, 1), nn.ReLU())
        self.gru = nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, 6)

    def data(self) -> dict[str, Tensor]:
        random = noise(813)
        speech = torch.randn(320, 6, 32, generator=random)
        text = torch.randint(1, 6, (320, 9), generator=random)
        sizes = torch.randint(2, 6, (320,), generator=random)
        sizes[201] = self.longest
        return {"speech": speech, "text": text, "text_lengths": sizes}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        frames = self.gru(self.subsampling(batch["speech"]).transpose(1, 2))[0]
        chances = self.head(frames).log_softmax(2).transpose(0, 1)
        seen = torch.full((len(frames),), frames.shape[1])
        return functional.ctc_loss(chances, batch["text"], seen, batch["text_lengths"])
