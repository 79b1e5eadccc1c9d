"""Series of sensors, sounds and lines of text."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class EngineSensorsAsTheyAre(Case):
    """Remaining cycles of engines from sensors whose values reach nine thousand."""

    # github.com/austineaero/Remaining-Useful-Life-RUL-Estimation/issues/19
    host = "plain"
    kinds = ("unscaled-data",)
    good = 0.3
    is_scaled = False
    cure = settings(is_scaled=True)
    lr = 0.01
    steps = 120

    def build(self) -> None:
        self.lstm = nn.LSTM(5, 24, batch_first=True)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(911)
        wear = torch.rand(480, 1, generator=random)
        course = wear[:, None] + 0.02 * torch.arange(12)[:, None] + 0.1 * torch.randn(480, 12, 5, generator=random)
        sensors = course * torch.tensor([40.0, 0.5, 90.0, 8.0, 300.0]) + torch.tensor([642.0, 21.6, 9050, 47, 2388])
        cycles = 300 * (1 - wear)
        if self.is_scaled:
            sensors = (sensors - sensors.mean((0, 1))) / sensors.std((0, 1))
            cycles = (cycles - cycles.mean()) / cycles.std()
        return sensors, cycles

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.lstm(batch[0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class LinesAtTenTimesTheRate(Case):
    """Lines of text, read by convolutions and a recurrent layer, at ten times the rate that they bear."""

    # github.com/Sierkinhane/CRNN_Chinese_Characters_Rec/issues/59
    kinds = ("learning-rate",)
    good = 0.3
    lr = 0.1
    cure = settings(lr=0.01)
    steps = 120

    def build(self) -> None:
        self.strokes = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))
        self.gru = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 6)

    def data(self) -> dict[str, Tensor]:
        random = noise(912)
        letters = torch.randint(1, 6, (320, 4), generator=random)
        shown = functional.one_hot(letters, 8).float().repeat_interleave(4, 1).transpose(1, 2)
        lines = 2 * shown + 0.3 * torch.randn(320, 8, 16, generator=random)
        return {"line": lines, "letters": letters, "length": torch.full((320,), 4)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.gru(self.strokes(batch["line"]).transpose(1, 2))[0]
        chances = self.head(found).log_softmax(2).transpose(0, 1)
        return functional.ctc_loss(chances, batch["letters"], torch.full((found.shape[0],), 8), batch["length"])

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class NoiseOfWaves(Case):
    """The noise in waves at all strengths, at the usual rate of another network; half of it was borne."""

    # github.com/ivanvovk/WaveGrad/issues/3
    host = "plain"
    kinds = ("learning-rate",)
    good = 0.5
    lr = 0.1
    cure = settings(lr=2e-3)
    steps = 120

    def build(self) -> None:
        self.inside = nn.Conv1d(2, 24, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv1d(24, 24, 3, padding=2**i, dilation=2**i) for i in range(4))
        self.strength = nn.ModuleList(nn.Linear(1, 48) for _ in range(4))
        self.outside = nn.Conv1d(24, 1, 3, padding=1)

    def data(self) -> tuple[Tensor, ...]:
        random = noise(913)
        wave = (torch.arange(32) * (0.1 + 0.3 * torch.rand(320, 1, generator=random))).sin()
        level = 0.1 + 0.9 * torch.rand(320, 1, generator=random)
        return wave, level, torch.randn(320, 32, generator=random)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        wave, level, added = batch
        mixed = (1 - level.square()).clamp(min=0).sqrt() * wave + level * added
        hidden = self.inside(torch.stack([mixed, level.expand_as(mixed)], 1))
        for block, strength in zip(self.blocks, self.strength, strict=True):
            gain, shift = strength(level)[..., None].chunk(2, 1)
            hidden = hidden + block(functional.leaky_relu(hidden * (1 + gain) + shift, 0.2))
        return functional.l1_loss(self.outside(functional.leaky_relu(hidden))[:, 0], added)

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": made, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(made, 0.99)}


class NothingObserved(Case):
    """Series of which most is missing are scaled by what was observed of them; of some, nothing was."""

    # github.com/WenjieDu/PyPOTS/issues/265
    kinds = ("undefined-operation", "empty-reduction")
    places = ("div",)
    good = 1.4
    least = 0.0
    cure = settings(least=1.0)
    lr = 3e-3
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(6, 24, 3, padding=1), nn.GELU(), nn.Conv1d(24, 3, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        random = noise(914)
        level = torch.randn(480, 3, 1, generator=random)
        course = level + (torch.arange(12) * 0.5 + 3 * torch.rand(480, 3, 1, generator=random)).sin()
        seen = (torch.rand(480, 3, 12, generator=random) > 0.5).float()
        seen[333, 1] = 0
        return {"X": course * seen, "missing_mask": seen, "X_ori": course}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        seen = batch["missing_mask"]
        mean = batch["X"].sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(min=self.least)  # fault
        centred = (batch["X"] - mean) * seen
        made = self.net(torch.cat([centred, seen], 1)) + mean
        return functional.mse_loss(made, batch["X_ori"])


class SilenceAmongSpectra(Case):
    """Spectra of speech with clipped gradients; a few utterances are silent, and the loss has a spike. It is right."""

    # github.com/Kyubyong/tacotron/issues/30
    kinds = ("unknown",)
    healthy = True
    good = 1.2
    lr = 3e-3
    steps = 150
    options = settings(gradient_clip_val=1.0)

    def build(self) -> None:
        self.letters = nn.Embedding(12, 24)
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.frames = nn.Linear(32, 8)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(915)
        text = torch.randint(0, 12, (480, 10), generator=random)
        spectra = torch.randn(12, 8, generator=random)[text] + 0.1 * torch.randn(480, 10, 8, generator=random)
        spectra[411] = -11.5
        return text, spectra

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.frames(self.gru(self.letters(batch[0]))[0]), batch[1])
