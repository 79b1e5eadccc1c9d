"""Sound, sentences and their tags, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RawSoundAsCodes(Case):
    """Samples of sound by dilated convolutions and a logistic distribution, from files that were made for codes.

    Report: github.com/Rayhane-mamah/Tacotron-2/issues/146. Solved by the reporter after a word of the author: the input
    was changed to raw sound, and the files, with codes from 0 to 255, were not made again.
    """

    kinds = ("unscaled-data", "target-out-of-range")
    places = ("audio",)
    host = "plain"
    good = 5.0
    makes_again = False
    cure = settings(makes_again=True)
    cured_by = r"scale|standardi|normali|divide|between"
    batch_size = 16
    lr = 3e-3
    steps = 350

    def build(self) -> None:
        self.first = nn.Conv1d(1, 32, 2)
        self.residual = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=d) for d in (2, 4, 8))
        self.condition = nn.Linear(1, 32)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 2, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18301)
        pitch = 0.15 + 0.35 * torch.rand(480, 1, generator=generator)
        phase = 6.28 * torch.rand(480, 1, generator=generator)
        audio = 0.7 * (pitch * torch.arange(64) + phase).sin() + 0.02 * torch.randn(480, 64, generator=generator)
        audio = audio.clamp(-1, 1)
        if not self.makes_again:
            audio = (127.5 * (audio.sign() * (1 + 255 * audio.abs()).log() / 5.545 + 1)).round()
        return {"audio": audio[:, None], "mel": 3 * pitch}

    def logistic(self, parameters: Tensor, y: Tensor) -> Tensor:
        mean, log_scale = parameters.chunk(2, 1)
        inv_stdv = (-log_scale.clamp(min=-7.0)).exp()
        centered = y - mean
        plus, minus = inv_stdv * (centered + 1 / 255), inv_stdv * (centered - 1 / 255)
        inner = (plus.sigmoid() - minus.sigmoid()).clamp(min=1e-12).log()
        edge = torch.where(y > 0.999, -functional.softplus(minus), inner)
        return -torch.where(y < -0.999, plus - functional.softplus(plus), edge).mean()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        audio = batch["audio"]
        x = self.first(functional.pad(audio[:, :, :-1], (1, 0))) + self.condition(batch["mel"])[..., None]
        for layer, d in zip(self.residual, (2, 4, 8), strict=True):
            gate, value = layer(functional.pad(x, (d, 0))).chunk(2, 1)
            x = x + gate.sigmoid() * value.tanh()
        return self.logistic(self.last(x), audio[:, :, 1:])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SmallTransformerRate(Case):
    """Pairs of sentences with hidden words, by a transformer that is written out, in a loop over all of them.

    Report: github.com/graykode/nlp-tutorial/issues/77. Found by the reporter: at the rate of the tutorial the loss
    almost never falls below two, and at a tenth of it it falls to a tenth.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 1.0
    lr = 0.03
    cure = settings(lr=1e-3)
    batch_size = 24
    steps = 400

    def build(self) -> None:
        self.tok_embed, self.pos_embed, self.seg_embed = nn.Embedding(26, 32), nn.Embedding(14, 32), nn.Embedding(2, 32)
        self.norm = nn.LayerNorm(32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2))
        self.fc, self.linear = nn.Linear(32, 32), nn.Linear(32, 32)
        self.classifier = nn.Linear(32, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18302)
        topic = torch.randint(4, (480, 1), generator=generator)
        following = torch.rand(480, 1, generator=generator) < 0.5
        other = torch.where(following, topic, (topic + 1 + torch.randint(3, (480, 1), generator=generator)) % 4)
        step = torch.arange(7)
        sentence = torch.cat([2 + topic * 6 + step % 6, 2 + other * 6 + (step + 2) % 6], 1)
        position = torch.randint(14, (480, 2), generator=generator)
        hidden = sentence.scatter(1, position, 0)
        return {
            "input_ids": hidden,
            "masked_pos": position,
            "masked_tokens": sentence.gather(1, position),
            "isNext": following[:, 0].long(),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        place = torch.arange(14)
        x = self.norm(self.tok_embed(ids) + self.pos_embed(place) + self.seg_embed(place // 7))
        for layer in self.layers:
            x = layer(x)
        h_masked = x.gather(1, batch["masked_pos"][..., None].expand(-1, -1, 32))
        logits_lm = functional.gelu(self.linear(h_masked)) @ self.tok_embed.weight.T
        loss_lm = functional.cross_entropy(logits_lm.flatten(0, 1), batch["masked_tokens"].flatten())
        logits_clsf = self.classifier(self.fc(x[:, 0]).tanh())
        return loss_lm + functional.cross_entropy(logits_clsf, batch["isNext"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class LikelihoodIsMinimized(Case):
    """Tags of words by a recurrent network and a conditional random field, which returns the log-likelihood.

    Report: github.com/kmkurn/pytorch-crf/issues/81. Solved by the reporter: the loss is a big negative number, since
    what the layer returns has to be negated.
    """

    kinds = ("loss-without-floor",)
    good = 1.0
    sign = 1.0
    cure = settings(sign=-1.0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\bsign\b|negat|minus"
    batch_size = 32
    lr = 1e-2
    steps = 250

    def build(self) -> None:
        self.embed = nn.Embedding(16, 16)
        self.lstm = nn.LSTM(16, 16, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(32, 3)
        self.start, self.end = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        self.transitions = nn.Parameter(0.1 * torch.randn(3, 3))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18303)
        words = torch.randint(1, 16, (640, 10), generator=generator)
        mask = torch.arange(10) < torch.randint(5, 11, (640, 1), generator=generator)
        before = functional.pad(words[:, :-1], (1, 0))
        tags = torch.where(words > 10, 1, torch.where(before > 10, 2, 0))
        return {"words": words * mask, "tags": tags * mask, "mask": mask}

    def crf(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        every = torch.arange(len(tags))
        numerator = self.start[tags[:, 0]] + emissions[every, 0, tags[:, 0]]
        alpha = self.start + emissions[:, 0]
        for i in range(1, tags.shape[1]):
            step = self.transitions[tags[:, i - 1], tags[:, i]] + emissions[every, i, tags[:, i]]
            numerator = numerator + step * mask[:, i]
            following = (alpha[:, :, None] + self.transitions + emissions[:, i, None]).logsumexp(1)
            alpha = torch.where(mask[:, i, None], following, alpha)
        last = tags.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
        return (numerator + self.end[last] - (alpha + self.end).logsumexp(1)).mean()

    def log_likelihood(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, _ = self.lstm(self.embed(batch["words"]))
        return self.crf(self.hidden2tag(hidden), batch["tags"], batch["mask"])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.sign * self.log_likelihood(batch)

    def score(self) -> float:
        return -float(self.log_likelihood(self.clean()))
