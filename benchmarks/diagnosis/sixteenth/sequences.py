"""Series, speech, text lines and videos, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class MissingReadings(Case):
    """A recurrent network forecasts a series that has missing values, in windows of past and future.

    Report: github.com/unit8co/darts/issues/881. Confirmed by the reporter: the loss is NaN from the beginning since the
    series has missing values.
    """

    kinds = ("nonfinite-input", "nonfinite-target")
    places = ("past_target", "future_target")
    good = 0.1
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\bfill|interpolat|nan_to_num"
    batch_size = 32
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.rnn = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16101)
        t = torch.arange(1200)
        series = (t * 0.26).sin() + 0.5 * (t * 0.037).cos() + 0.1 * torch.randn(1200, generator=generator)
        hour = (t * 0.26).cos()
        missing = torch.randperm(1200, generator=generator)[:25]
        series[missing] = series[missing - 1] if self.fills else torch.nan
        windows = series.unfold(0, 25, 1)
        covariates = hour.unfold(0, 25, 1)
        past = torch.stack([windows[:, :24], covariates[:, 1:]], 2)
        return {"past_target": past, "future_target": windows[:, 1:]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, _ = self.rnn(batch["past_target"])
        return functional.mse_loss(self.out(hidden)[..., 0], batch["future_target"])


class LongLines(Case):
    """Lines of text by convolutions and a recurrent network; some lines have more characters than the picture columns.

    Report: github.com/Sierkinhane/CRNN_Chinese_Characters_Rec/issues/281. Found by the reporter: without the labels
    that are longer than 40 characters the training is normal.
    """

    kinds = ("target-out-of-range",)
    places = ("ctc", "text", "length")
    host = "plain"
    good = 0.4
    drops_long = False
    cure = settings(drops_long=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"remove|\bdrop\b|exclude|zero_infinity"
    batch_size = 16
    lr = 5e-3
    steps = 350

    def build(self) -> None:
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 32, (4, 1))
        )
        self.rnn = nn.LSTM(32, 32, bidirectional=True, batch_first=True)
        self.embedding = nn.Linear(64, 9)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16102)
        glyphs = torch.randn(9, 8, 4, generator=generator)
        length = torch.randint(2, 7, (640,), generator=generator)
        length[torch.randperm(640, generator=generator)[:14]] = 16
        text = torch.randint(1, 9, (640, 16), generator=generator)
        image = 0.2 * torch.randn(640, 1, 8, 24, generator=generator)
        for i, count in enumerate(length.tolist()):
            width = min(4, 24 // count)
            for j, one in enumerate(text[i, :count].tolist()):
                image[i, 0, :, j * width : (j + 1) * width] += glyphs[one, :, :width]
        fields = {"image": image, "text": text, "length": length}
        if self.drops_long:
            fields = {name: field[length < 12] for name, field in fields.items()}
        return fields

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.cnn(batch["image"]).squeeze(2).mT
        preds = self.embedding(self.rnn(features.relu())[0]).log_softmax(2).transpose(0, 1)
        preds_size = torch.full((len(batch["text"]),), len(preds))
        return functional.ctc_loss(preds, batch["text"], preds_size, batch["length"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PaddedQueries(Case):
    """A transformer from scratch, whose masks set the scores of all pairs with a padding to minus infinity.

    Report: github.com/jadore801120/attention-is-all-you-need-pytorch/issues/5. Confirmed and fixed: where all of a row
    is masked the softmax of minus infinity is NaN, from the first epoch.
    """

    kinds = ("undefined-operation",)
    places = ("softmax", "attention", "attn")
    good = 0.3
    fill = -float("inf")
    cure = settings(fill=-1e9)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"finite|-1e9|large negative|masked"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.embed = nn.Embedding(12, 32, padding_idx=0)
        self.position = nn.Parameter(0.1 * torch.randn(12, 32))
        self.w_qs, self.w_ks, self.w_vs = (nn.Linear(32, 32) for _ in range(3))
        self.slf_norm, self.norm = nn.LayerNorm(32), nn.LayerNorm(32)
        self.pos_ffn = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.project = nn.Linear(32, 12)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16103)
        tokens = torch.randint(1, 12, (768, 12), generator=generator)
        present = torch.arange(12) < torch.randint(5, 13, (768, 1), generator=generator)
        source = tokens * present
        target = torch.where(present, (tokens + tokens[:, :1]) % 11 + 1, 0)
        return {"source": source, "target": target}

    def slf_attn(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.w_qs(x) @ self.w_ks(x).mT / 32**0.5
        weights = scores.masked_fill(mask, self.fill).softmax(-1)  # fault
        return self.slf_norm(x + weights @ self.w_vs(x))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        padded = batch["source"].eq(0)
        mask = padded[:, :, None] | padded[:, None]
        x = self.slf_attn(self.embed(batch["source"]) + self.position, mask)
        x = self.norm(x + self.pos_ffn(x))
        logits = self.project(x)
        return functional.cross_entropy(logits.flatten(0, 1), batch["target"].flatten(), ignore_index=0)


class ProposalsWithoutPositives(Case):
    """Proposals of actions in videos, whose classification is balanced by the number of all and of good proposals.

    Report: github.com/JJBOY/BMN-Boundary-Matching-Network/issues/23. Confirmed by the author: with a batch of one video
    no proposal may be good enough, and the ratio is infinite.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "reciprocal", "mul", "sub")
    host = "plain"
    good = 0.5
    skips_empty = False
    cure = settings(skips_empty=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\bskip\b|clamp|at least|empty|without"
    batch_size = 1
    lr = 2e-3
    steps = 390

    def build(self) -> None:
        self.base = nn.Sequential(nn.Conv1d(6, 32, 3, padding=1), nn.ReLU())
        self.p = nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1), nn.Sigmoid())

    def data(self) -> dict[str, Tensor]:
        generator = noise(16104)
        begin = torch.randint(0, 8, (400, 1), generator=generator)
        length = torch.randint(2, 5, (400, 1), generator=generator)
        t = torch.arange(12)
        active = (t >= begin) & (t < begin + length)
        kind = torch.randn(6, generator=generator)
        video = active[:, None] * kind[:, None] + 0.3 * torch.randn(400, 6, 12, generator=generator)
        start, end = t[:, None], t[None] + 1
        inter = (torch.minimum(end, (begin + length)[..., None]) - torch.maximum(start, begin[..., None])).clamp(min=0)
        union = torch.maximum(end, (begin + length)[..., None]) - torch.minimum(start, begin[..., None])
        iou = inter / union * (end > start)
        visible = torch.rand(400, generator=generator) < 0.93
        return {"video": video * visible[:, None, None], "iou": iou * visible[:, None, None]}

    def pem_cls_loss(self, pred: Tensor, iou: Tensor, mask: Tensor) -> Tensor:
        positive, negative = (iou > 0.9).float(), (iou <= 0.9).float() * mask
        num_positive = positive.sum()
        if self.skips_empty and num_positive == 0:
            return 0.0 * pred.sum()
        ratio = (positive + negative).sum() / num_positive  # fault
        coef_0 = 0.5 * ratio / (ratio - 1)  # fault
        coef_1 = 0.5 * ratio
        each = coef_1 * (pred + 1e-6).log() * positive + coef_0 * (1 - pred + 1e-6).log() * negative  # fault
        return -each.sum() / (positive + negative).sum()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.base(batch["video"])
        pairs = torch.cat([x[..., :, None].expand(-1, -1, -1, 12), x[..., None, :].expand(-1, -1, 12, -1)], 1)
        pred = self.p(pairs)
        mask = torch.ones(12, 12).triu().expand_as(batch["iou"])
        regression = ((pred[:, 0] - batch["iou"]).square() * mask).sum() / mask.sum()
        return self.pem_cls_loss(pred[:, 1], batch["iou"], mask) + 10 * regression

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class VocoderRate(Case):
    """Noise in sound is estimated from the noise level and a spectrum, by Adam at twice the rate that is borne.

    Report: github.com/ivanvovk/WaveGrad/issues/3. Confirmed by the reporter: at the given rate the loss is NaN, or
    jumps to hundreds of millions; at a lower one that also falls faster it is fine.
    """

    kinds = ("learning-rate",)
    good = 0.6
    lr = 0.2
    cure = settings(lr=3e-3)
    batch_size = 16
    steps = 350

    def build(self) -> None:
        self.first = nn.Conv1d(1, 24, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(24, 24, 3, padding=d, dilation=d) for d in (1, 2, 4, 1, 2, 4))
        self.films = nn.ModuleList(nn.Linear(2, 48) for _ in range(6))
        self.last = nn.Conv1d(24, 1, 5, padding=2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16105)
        pitch = 0.2 + 0.4 * torch.rand(512, 1, generator=generator)
        phase = 6.28 * torch.rand(512, 1, generator=generator)
        return {
            "audio": (pitch * torch.arange(48) + phase).sin()[:, None],
            "mel": pitch,
            "level": 0.3 + 0.6 * torch.rand(512, 1, generator=generator),
            "noise": torch.randn(512, 1, 48, generator=generator),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        level = batch["level"][..., None]
        x = self.first(level * batch["audio"] + (1 - level.square()).sqrt() * batch["noise"])
        for block, film in zip(self.blocks, self.films, strict=True):
            scale, shift = film(torch.cat([batch["level"], batch["mel"]], 1))[..., None].chunk(2, 1)
            x = x + block(functional.leaky_relu((1 + scale) * x + shift, 0.2))
        return functional.l1_loss(self.last(x), batch["noise"])
