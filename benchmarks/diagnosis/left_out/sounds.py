"""Sounds, and codes of several kinds of data."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class MomentumOfAnAverage(Case):
    """A recognizer of spoken words, with 0.999 for the momentum, which was meant for an average of the weights."""

    # Two settings of a configuration that were mistaken for each other.
    kinds = ("optimizer-state", "learning-rate")
    good = 0.4
    momentum = 0.999
    cure = settings(momentum=0.9)
    cured_by = "momentum"
    lr = 0.3
    steps = 250

    def build(self) -> None:
        self.recurrent = nn.GRU(6, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(751)
        word = torch.randint(0, 4, (480,), generator=random)
        wave = (0.5 * (word[:, None] + 1) * torch.arange(12)).cos()
        return torch.randn(480, 12, 6, generator=random) + wave[..., None], word

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.recurrent(batch[0])[0].mean(1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


class PictureWithoutACaption(Case):
    """Pictures and captions with a padding mask; one picture has no caption, and its mask leaves nothing."""

    # github.com/pytorch/pytorch/issues/24816
    kinds = ("undefined-operation",)
    places = ("softmax", "attention")
    rows = (8, 264)
    good = 0.9
    words = 0
    cure = settings(words=1)
    cured_by = "mask|empty|pad"
    shuffle = False
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.words_of = nn.Embedding(20, 16)
        self.attention, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.picture = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16))
        self.heat = nn.Parameter(torch.tensor(2.3))

    def data(self) -> dict[str, Tensor]:
        random = noise(752)
        caption = torch.randint(1, 20, (640, 6), generator=random)
        length = torch.randint(3, 7, (640,), generator=random)
        length[264] = self.words
        caption[torch.arange(6) >= length[:, None]] = 0
        known = torch.randn(20, 10, generator=random)
        return {"picture": known[caption[:, 0]] + 0.2 * torch.randn(640, 10, generator=random), "caption": caption}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        padded = batch["caption"] == 0
        words = self.words_of(batch["caption"])
        text = self.norm(words + self.attention(words, words, words, key_padding_mask=padded)[0])[:, 0]  # fault
        scores = functional.normalize(self.picture(batch["picture"]), dim=1) @ functional.normalize(text, dim=1).T
        true, scores = torch.arange(len(text)), scores * self.heat.exp()
        return (functional.cross_entropy(scores, true) + functional.cross_entropy(scores.T, true)) / 2

    def score(self) -> float:
        return float(self.loss({name: field[:32] for name, field in self.clean().items()}))


class PlateauOfPairs(Case):
    """Contrastive learning that rests at the logarithm of the batch before its gradients grow. It is right."""

    # As contrastive training often begins.
    host = "plain"
    kinds = ("unknown",)
    healthy = True
    good = 1.5
    lr = 0.01
    steps = 400

    def build(self) -> None:
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8))
                for name in ("sound", "text")
            }
        )

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(753)
        sound = torch.randn(640, 12, generator=random)
        return sound, sound @ torch.linalg.qr(torch.randn(12, 12, generator=random))[0]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        sound, text = (self.towers[name](one) for name, one in zip(("sound", "text"), batch, strict=True))
        return functional.cross_entropy(sound @ text.T, torch.arange(len(sound)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def score(self) -> float:
        sound, text = self.clean()
        return float(self.loss((sound[:32], text[:32])))


class DurationsOfNothing(Case):
    """Speech from text: the logarithm of a sound's frames as target; some sounds have no frame."""

    # github.com/TensorSpeech/TensorFlowTTS/issues/203 (files with durations of zero)
    host = "plain"
    kinds = ("nonfinite-target",)
    good = 0.2
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"fill|clamp|log1p|\+ 1"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.sounds = nn.Embedding(16, 12)
        self.predictor = nn.Sequential(nn.Conv1d(12, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 1, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(754)
        sounds = torch.randint(0, 16, (480, 9), generator=random)
        frames = (2.0 + sounds).round()
        frames[torch.rand(480, 9, generator=random) < 0.002] = 0.0
        return {"sounds": sounds, "durations": frames.clamp(min=self.least).log()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = self.predictor(self.sounds(batch["sounds"]).transpose(1, 2)).squeeze(1)
        return functional.smooth_l1_loss(made, batch["durations"])


class PairsApart(Case):
    """Codes of matching pairs are drawn together and others pushed apart, without the margin that ends the push."""

    # A margin loss that was written without its margin.
    kinds = ("loss-without-floor",)
    good = 1.5
    has_margin = False
    cure = settings(has_margin=True)
    cured_by = "margin"
    not_cured_by = (settings(lr=3e-4),)
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.photo, self.sketch = (nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 6)) for _ in range(2))

    def data(self) -> tuple[Tensor, Tensor]:
        photo = torch.randn(640, 10, generator=noise(755))
        return photo, (2 * photo).tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        photo, sketch = self.photo(batch[0]), self.sketch(batch[1])
        near, far = (photo - sketch).square().sum(1), (photo - sketch.roll(1, 0)).square().sum(1)
        return (near - far + 1).relu().mean() if self.has_margin else (near - far).mean()

    def score(self) -> float:
        photo, sketch = self.clean()
        return float((self.photo(photo) - self.sketch(sketch)).square().sum(1).mean())
