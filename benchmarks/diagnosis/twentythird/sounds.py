"""Sounds, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SilentRecordings(Case):
    """Enhancement of speech, each recording divided by its level: the loss is NaN.

    Report: github.com/yxlu-0102/MP-SENet/issues/33. Found by the reporter and accepted by the author: a noisy recording
    that is silence is divided by zero in the dataset; weak noise is added to it now.
    """

    kinds = ("nonfinite-input", "nonfinite-target")
    places = ("noisy", "clean")
    rows = (130, 517)
    good = 0.25
    fills_silence = False
    cure = settings(fills_silence=True)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 16
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv1d(1, 24, 9, padding=4), nn.PReLU(), nn.Conv1d(24, 24, 9, padding=4))
        self.mask_decoder = nn.Sequential(nn.PReLU(), nn.Conv1d(24, 1, 9, padding=4))

    def data(self) -> dict[str, Tensor]:
        generator = noise(23301)
        time = torch.arange(64.0)
        pitch = 0.1 + 0.3 * torch.rand(640, 1, generator=generator)
        clean_audio = (pitch * time).sin() * torch.rand(640, 1, generator=generator)
        noisy_audio = clean_audio + 0.2 * torch.randn(640, 64, generator=generator)
        silent = list(self.rows)
        clean_audio[silent], noisy_audio[silent] = 0.0, 0.0
        if self.fills_silence:
            noisy_audio[silent] = 1e-5 * torch.randn(len(silent), 64, generator=generator)
        norm_factor = (64 / noisy_audio.square().sum(1, keepdim=True)).sqrt()
        return {"noisy": noisy_audio * norm_factor, "clean": clean_audio * norm_factor}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        estimated = self.mask_decoder(self.encoder(batch["noisy"][:, None]))[:, 0]
        return functional.mse_loss(estimated, batch["clean"])


class SpectrumOfAnEmptyStem(Case):
    """Separation of instruments by masks of the spectrum, with the root of the mean square as loss: it becomes NaN.

    Report: github.com/ZFTurbo/Music-Source-Separation-Training/pull/200. Fixed by its author: a small number is added.
    Some segments of a track are silent.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.25
    eps = 0.0
    cure = settings(eps=1e-8)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 8
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.band = nn.Linear(33, 64)
        self.rnn, self.mask = nn.GRU(64, 64, batch_first=True), nn.Linear(64, 33)

    def data(self) -> dict[str, Tensor]:
        generator = noise(23302)
        time = torch.arange(256.0)
        low = (0.05 + 0.2 * torch.rand(480, 1, generator=generator)) * time
        high = (1.2 + 1.5 * torch.rand(480, 1, generator=generator)) * time
        bass, other = low.sin(), 0.7 * high.sin()
        silent = torch.rand(480, generator=generator) < 0.01
        bass[silent], other[silent] = 0.0, 0.0
        return {"mix": bass + other, "bass": bass}

    def spectrum(self, audio: Tensor) -> Tensor:
        window = torch.hann_window(64)
        return torch.stft(audio, 64, 32, window=window, return_complex=True).abs().transpose(1, 2) / 16

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mix, target = self.spectrum(batch["mix"]), self.spectrum(batch["bass"])
        masked = mix * self.mask(self.rnn(self.band(mix))[0]).sigmoid()
        spec_rmse = ((masked - target).square().mean((1, 2)) + self.eps).sqrt()  # fault
        return spec_rmse.mean()
