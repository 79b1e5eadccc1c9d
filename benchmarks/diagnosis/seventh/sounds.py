"""Sounds, and codes that are compared in pairs."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SpreadOfOneFrame(Case):
    """A speaker's code from mean and deviation over the frames of an utterance, some of which have one frame."""

    # github.com/pyannote/pyannote-audio/pull/2047
    kinds = ("empty-reduction",)
    places = ("std",)
    good = 0.5
    correction = 1
    cure = settings(correction=0)
    cured_by = "unbiased|correction"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.frames = nn.Sequential(nn.Conv1d(6, 24, 3, padding=1), nn.ReLU())
        self.speakers = nn.Linear(48, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(721)
        speaker = torch.randint(0, 4, (480,), generator=random)
        signal = torch.randn(480, 6, 12, generator=random) + 1.5 * functional.one_hot(speaker, 6)[..., None]
        length = torch.randint(4, 13, (480,), generator=random)
        length[torch.rand(480, generator=random) < 0.01] = 1
        return {"signal": signal, "length": length, "speaker": speaker}

    def pooled(self, frames: Tensor) -> Tensor:
        return torch.cat([frames.mean(1), frames.std(1, correction=self.correction)])  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.frames(batch["signal"])
        codes = [self.pooled(one[:, :length]) for one, length in zip(found, batch["length"].tolist(), strict=True)]
        return functional.cross_entropy(self.speakers(torch.stack(codes)), batch["speaker"])


class SquaresOfOneBatch(Case):
    """A tagger of sounds with Adam whose second beta is 0.01: its squares are those of the last batch alone."""

    # github.com/paultsw/nice_pytorch/issues/2
    kinds = ("optimizer-state",)
    good = 0.45
    beta = 0.01
    cure = settings(beta=0.999)
    cured_by = "beta"
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(4, 24, 5, 2, 2), nn.GELU(), nn.Conv1d(24, 24, 5, 2, 2), nn.GELU())
        self.tags = nn.Linear(24, 5)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(722)
        sound, note = torch.randn(480, 4, 16, generator=random), torch.randint(0, 5, (480,), generator=random)
        wave = (0.4 * (note[:, None] + 1) * torch.arange(16)).sin()
        return sound + wave[:, None], functional.one_hot(note, 5).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.tags(self.net(batch[0]).mean(2)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.9, self.beta), eps=1e-8)


class DecayAboveOne(Case):
    """A vocoder whose rate is to decay by 0.999 at each step, and is multiplied by 1.09 instead."""

    # The configuration of a vocoder has lr_decay 0.999.
    host = "plain"
    kinds = ("learning-rate-jump",)
    good = 0.25
    gamma = 1.09
    cure = settings(gamma=0.999)
    cured_by = "decay|gamma"
    lr = 1e-3
    steps = 160

    def build(self) -> None:
        self.up = nn.ConvTranspose1d(8, 16, 4, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=size, dilation=size) for size in (1, 2))
        self.last = nn.Conv1d(16, 1, 7, padding=3)

    def data(self) -> tuple[Tensor, Tensor]:
        mel = torch.randn(320, 8, 12, generator=noise(723))
        wave = functional.interpolate(mel[:, :1] + mel[:, 1:2], scale_factor=2, mode="linear").tanh()
        return mel, wave

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.up(batch[0])
        for block in self.blocks:
            hidden = hidden + block(functional.leaky_relu(hidden, 0.1))
        return functional.l1_loss(self.last(functional.leaky_relu(hidden)).tanh(), batch[1])

    def configure_optimizers(self) -> Any:
        made = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.8, 0.99))
        return {"optimizer": made, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(made, self.gamma)}


class SupervisedPairs(nn.Module):
    """Mean logarithm of the chance of others of the same class among all others.

    Args:
        least: The smallest number of others of a class.
    """

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, codes: Tensor, classes: Tensor) -> Tensor:
        others = 1 - torch.eye(len(codes))
        same = (classes[:, None] == classes).float() * others
        likeness = codes @ codes.T / 0.1
        likeness = likeness - likeness.amax(1, keepdim=True).detach()
        chance = likeness - (likeness.exp() * others).sum(1, keepdim=True).log()
        mean = (same * chance).sum(1) / same.sum(1).clamp(min=self.least)
        return -mean.mean()


class AloneInItsClass(Case):
    """Contrastive codes with classes; in some batches a picture is the only one of its class, and has no partner."""

    # github.com/HobbitLong/SupContrast/issues/141
    host = "plain"
    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 3.2
    least = 0.0
    cure = settings(least=1.0)
    cured_by = "clamp"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.tower = nn.Sequential(nn.Linear(12, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8))
        self.criterion = SupervisedPairs(self.least)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(724)
        centres = 2 * torch.randn(7, 12, generator=random)
        chance = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
        classes = torch.multinomial(chance, 640, replacement=True, generator=random)
        return centres[classes] + torch.randn(640, 12, generator=random), classes

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.criterion(functional.normalize(self.tower(batch[0]), dim=1), batch[1])

    def score(self) -> float:
        pictures, classes = (field[:64] for field in self.clean())
        return float(SupervisedPairs(1.0)(functional.normalize(self.tower(pictures), dim=1), classes))


class FactorForgotten(Case):
    """A speech transformer with the usual warm-up, from whose formula the factor was left out."""

    # The rate of a speech recipe is a factor on this formula.
    kinds = ("learning-rate", "learning-rate-jump")
    good = 0.5
    factor = 1.0
    cure = settings(factor=0.02)
    lr = 1.0
    steps = 200

    def build(self) -> None:
        self.inside = nn.Conv1d(8, 32, 3, padding=1)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True), 3, enable_nested_tensor=False
        )
        self.head = nn.Linear(32, 4)

    def data(self) -> dict[str, Tensor]:
        frames = torch.randn(480, 8, 10, generator=noise(725))
        return {"frames": frames, "tone": frames[:, :4, 2:6].mean(2).argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(self.inside(batch["frames"]).transpose(1, 2))
        return functional.cross_entropy(self.head(hidden.mean(1)), batch["tone"])

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.9, 0.98), eps=1e-9)
        shape = torch.optim.lr_scheduler.LambdaLR(
            made, lambda step: self.factor * min((step + 1) ** -0.5, (step + 1) * 40**-1.5)
        )
        return {"optimizer": made, "lr_scheduler": {"scheduler": shape, "interval": "step"}}
