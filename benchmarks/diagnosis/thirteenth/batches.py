"""Data with rows, units or fields that a run does not survive, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class DryPeriods(Case):
    """Weather from its state and a forcing, which is standardized over each period; in some periods no rain falls.

    Report: github.com/mllam/neural-lam/issues/136 and pull/189. Confirmed: where all values of a field are the same,
    their deviation is zero and the standardized field NaN; it is left at zero.
    """

    kinds = ("nonfinite-input",)
    places = ("forcing",)
    rows = (57, 300, 611)
    good = 0.15
    leaves_constants = False
    cure = settings(leaves_constants=True)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 32
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8))

    def data(self) -> dict[str, Tensor]:
        random = noise(13101)
        state = torch.randn(768, 8, generator=random)
        rain = (torch.randn(768, 24, generator=random) + 0.5).relu() * 4.0
        rain[[57, 300, 611]] = 0.0
        apart, deviation = rain - rain.mean(1, keepdim=True), rain.std(1, keepdim=True)
        forcing = apart / (deviation.masked_fill(deviation == 0, 1.0) if self.leaves_constants else deviation)
        change = 0.5 * state.roll(1, 1).tanh() + 0.3 * forcing.nan_to_num()[:, :8]
        return {"state": state, "forcing": forcing, "change": change}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        forecast = self.net(torch.cat([batch["state"], batch["forcing"]], 1))
        return functional.mse_loss(forecast, batch["change"])


class HolesInDepth(Case):
    """A student learns depth from a teacher's features and from maps, in some of which pixels were stored as NaN.

    Report: github.com/hoiliu-0801/MonoTAKD/issues/7. Found by the reporter: depth maps of some samples hold NaN. Pixels
    without depth are left out by a factor of zero, which does not remove NaN.
    """

    kinds = ("nonfinite-target",)
    places = ("depth",)
    rows = (18, 249, 402, 530)
    good = 0.12
    maps_are_whole = False
    cure = settings(maps_are_whole=True)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 32
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv1d(2, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 24, 5, padding=2), nn.ReLU())
        self.head = nn.Conv1d(24, 1, 5, padding=2)

    def data(self) -> dict[str, Tensor]:
        random = noise(13102)
        depth = 2 + torch.randn(640, 1, 40, generator=random).cumsum(2).mul(0.3).tanh()
        image = torch.cat([1 / depth, depth.diff(dim=2, prepend=depth[:, :, :1])], 1)
        teacher = (functional.avg_pool1d(depth, 5, 1, 2) - 2).expand(-1, 24, -1)
        if not self.maps_are_whole:
            depth[[18, 249, 402, 530], 0, 11] = torch.nan
        return {"image": image, "teacher": teacher, "depth": depth}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.body(batch["image"])
        depth, there = batch["depth"], (batch["depth"] > 0).float()
        wrong = ((self.head(hidden) - depth).square() * there).sum() / there.sum()
        return wrong + 0.1 * functional.mse_loss(hidden, batch["teacher"].relu())


class ShortSegments(Case):
    """Words from segments of sound, in bfloat16; after a subsampling by four some are shorter than their labels.

    Report: github.com/k2-fsa/icefall/issues/135. Confirmed: segments of eleven frames leave two outputs, fewer than
    there are labels; such segments are filtered.
    """

    kinds = ("target-out-of-range",)
    places = ("ctc_loss", "labels", "label_lengths", "frame_lengths")
    rows = (31, 205, 377, 480)
    good = 0.6
    options = settings(precision="bf16-mixed")
    drops_short = False
    skips_infinite = False
    cure = settings(drops_short=True)
    not_cured_by = (settings(lr=1e-5),)
    other_cures = settings(zero_infinity={"skips_infinite": True})
    batch_size = 16
    lr = 1e-2
    steps = 120

    def build(self) -> None:
        self.subsample = nn.Conv1d(8, 32, 4, stride=4)
        self.encode, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, 7)

    def data(self) -> dict[str, Tensor]:
        random = noise(13103)
        labels = torch.randint(1, 7, (512, 5), generator=random)
        marks = 1.5 * torch.randn(7, 8, generator=random)
        frames = marks[labels].repeat_interleave(8, 1)
        frames = frames + 0.3 * torch.randn(frames.shape, generator=random)
        lengths = torch.full((512,), 40)
        for row in (31, 205, 377, 480):
            frames[row, :11] = frames[row, ::4][:10].repeat_interleave(2, 0)[:11]
            lengths[row] = 11
        kept = lengths >= 20 if self.drops_short else lengths > 0
        batch = {"frames": frames, "frame_lengths": lengths, "labels": labels, "label_lengths": torch.full((512,), 5)}
        return {name: field[kept] for name, field in batch.items()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.encode(self.subsample(batch["frames"].mT).relu().mT)[0]
        chances = self.head(hidden).float().log_softmax(2).transpose(0, 1)
        lengths = batch["frame_lengths"] // 4
        return functional.ctc_loss(  # fault
            chances, batch["labels"], lengths, batch["label_lengths"], zero_infinity=self.skips_infinite
        )


class TimestampsAsNumbers(Case):
    """Clicks by a wide and deep model, whose numeric field is the time of the click in seconds since 1970.

    Report: github.com/RUCAIBox/RecBole/issues/1062. Confirmed: the embedding of the time is above 1e8 and covers all
    other fields, since numeric fields are not normalized by default; they are to be normalized.
    """

    kinds = ("unscaled-data",)
    places = ("timestamp",)
    good = 0.6
    normalizes = False
    cure = settings(normalizes=True)
    not_cured_by = (settings(lr=1e-4),)
    batch_size = 64
    lr = 5e-3
    steps = 400

    def build(self) -> None:
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(60, 8)
        self.when = nn.Parameter(0.1 * torch.randn(8))
        self.wide = nn.Linear(8, 1)
        self.deep = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(13104)
        user, item = torch.randint(40, (4096,), generator=random), torch.randint(60, (4096,), generator=random)
        days = 30 * torch.rand(4096, generator=random)
        likes = torch.randn(40, 4, generator=random)[user] * torch.randn(60, 4, generator=random)[item]
        clicked = (likes.sum(1) + 0.1 * (days - 15) > 0).float()
        timestamp = 1511539200 + 86400 * days
        if self.normalizes:
            timestamp = (days - days.mean()) / days.std()
        return {"user": user, "item": item, "timestamp": timestamp, "clicked": clicked}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        fields = [self.users(batch["user"]), self.items(batch["item"]), batch["timestamp"][:, None] * self.when]
        score = self.wide(torch.stack(fields).sum(0)) + self.deep(torch.cat(fields, 1))
        return functional.binary_cross_entropy_with_logits(score[:, 0], batch["clicked"])

    def score(self) -> float:
        data = self.data()
        assert isinstance(data, dict)
        return float(self.loss(data))


class SqueezedBonds(Case):
    """Forces on atoms from distances to their neighbors; in few structures two atoms are nearly on each other.

    Report: github.com/deepmodeling/deepmd-kit/issues/2090. Found by the reporter: bonds of 0.6 angstrom have forces
    above 300 eV per angstrom, and the model became better when these structures were deleted.
    """

    kinds = ("outlier-batch",)
    places = ("force",)
    rows = (77, 340, 655, 902)
    good = 0.25
    deletes_squeezed = False
    cure = settings(deletes_squeezed=True)
    batch_size = 32
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(13105)
        distance = 1.2 + 1.3 * torch.rand(1024, 6, generator=random)
        distance[[77, 340, 655, 902], 0] = 0.6
        force = (1.3 / distance).pow(7).sum(1, keepdim=True) - 2.5 * (1.3 / distance).pow(3).sum(1, keepdim=True)
        kept = distance.amin(1) > 0.8 if self.deletes_squeezed else distance.amin(1) > 0
        return {"distance": distance[kept], "force": force[kept]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(1.5 / batch["distance"] - 0.8), batch["force"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
