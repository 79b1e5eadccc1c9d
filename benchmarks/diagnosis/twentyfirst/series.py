"""Speakers, demand and times to events, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SilentSpeakers(Case):
    """Who speaks, by vectors of speakers that were saved before and are normalized when they are loaded.

    Report: github.com/nttcslab-sp/EEND-vector-clustering/issues/3. Found by the reporter: some of the speakers that
    were saved are silent, their vector is zero, and its division by its norm is NaN. Silent speakers are left out.
    """

    kinds = ("initialization",)
    places = ("spk_emb", "embed", "embedding")
    host = "plain"
    good = 0.6
    leaves_out = False
    cure = settings(leaves_out=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"zeros|initiali[sz]|normali|\beps|silent|checkpoint|finite"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.enc = nn.GRU(8, 32, batch_first=True)
        self.linear = nn.Linear(32, 12)
        self.spk_emb = nn.Embedding(10, 12)
        generator = noise(21301)
        saved = torch.randn(10, 12, generator=generator)
        if not self.leaves_out:
            saved[6] = 0
        with torch.no_grad():
            self.spk_emb.weight.copy_(saved / saved.norm(dim=1, keepdim=True))

    def data(self) -> dict[str, Tensor]:
        generator = noise(21302)
        voices = torch.randn(10, 8, generator=generator)
        speaker = torch.randint(9, (640,), generator=generator)
        speaker = speaker + (speaker >= 6)
        frames = voices[speaker][:, None] + 0.8 * torch.randn(640, 10, 8, generator=generator)
        return {"xs": frames, "ss": speaker}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        vector = functional.normalize(self.linear(self.enc(batch["xs"])[0].mean(1)), dim=1)
        distance = (vector[:, None] - self.spk_emb.weight).square().sum(2)
        return functional.cross_entropy(-4 * distance, batch["ss"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DemandBelowZero(Case):
    """Series by exponential smoothing whose logarithm a recurrent network goes on with; some values are below zero.

    Report: github.com/kdgutier/esrnn_torch/issues/18. Confirmed by the author and the reporter: a multiplicative model
    takes logarithms, which fail below zero; the series are moved until they are positive.
    """

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "y")
    host = "plain"
    good = 0.2
    moved_by = 0.0
    cure = settings(moved_by=10.0)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"positive|shift|translat|add|log1p|clamp"
    batch_size = 32
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.lev_sms = nn.Parameter(torch.tensor(0.0))
        self.rnn = nn.LSTM(1, 24, batch_first=True)
        self.adapter = nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21303)
        phase = 6.28 * torch.rand(640, 1, generator=generator)
        level = 4 + 1.5 * torch.randn(640, 1, generator=generator).abs()
        y = level + 2 * (0.8 * torch.arange(20) + phase).sin() + 0.5 * torch.randn(640, 20, generator=generator)
        returned = torch.rand(640, 20, generator=generator) < 0.002
        return {"y": torch.where(returned, -y, y) + self.moved_by}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        y, smoothing = batch["y"], self.lev_sms.sigmoid()
        levels = [y[:, 0]]
        for step in range(1, 20):
            levels.append(smoothing * y[:, step] + (1 - smoothing) * levels[-1])
        level = torch.stack(levels, 1)
        ratio = (y / level).log()  # fault
        predicted = self.adapter(self.rnn(ratio[:, :-1, None])[0])[:, :, 0]
        target = (y[:, 1:] / level[:, :-1]).log()
        return (predicted - target).abs().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class TimeToTheNextEvent(Case):
    """Days until a machine fails by a recurrent network and a Weibull distribution of whole days; most do not fail.

    Report: github.com/ragulpr/wtte-rnn/issues/39. Found by the reporter and confirmed by a reader: two hazards are
    equal, the logarithm is of zero, and a small number is added to its argument.
    """

    kinds = ("undefined-operation",)
    places = ("log", "sub")
    good = 2.0
    added = 0.0
    cure = settings(added=1e-6)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"\beps|small (?:value|number)|add|expm1|clamp"
    batch_size = 32
    lr = 5e-2
    steps = 500

    def build(self) -> None:
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.output = nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21304)
        wear = (torch.rand(640, 1, generator=generator) < 0.4).float()
        x = wear[:, :, None] * torch.ones(640, 8, 3) + 0.1 * torch.randn(640, 8, 3, generator=generator)
        fails = torch.rand(640, generator=generator) < 0.004 + 0.8 * wear[:, 0]
        days = torch.where(fails, torch.randint(1, 10, (640,), generator=generator), 400)
        return {"x": x, "y": days.float(), "u": fails.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        a, b = self.output(self.gru(batch["x"])[0][:, -1]).unbind(1)
        a, b = (3 + a).exp(), functional.softplus(b)
        y, u = batch["y"], batch["u"]
        hazard0, hazard1 = ((y + 1e-6) / a) ** b, ((y + 1) / a) ** b
        loglikelihood = u * ((hazard1 - hazard0).exp() - 1 + self.added).log() - hazard1  # fault
        return -loglikelihood.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class RiskOfRawMeasurements(Case):
    """Risks of patients from their age, days and blood, as they stand in a public table, with the loss of Cox.

    Report: github.com/jaredleekatzman/DeepSurv/issues/14. Confirmed by a reader with another table: the first loss is
    2.8e10 and the next one NaN; with features that are scaled to between 0 and 1 the model trains.
    """

    kinds = ("unscaled-data", "forward-overflow")
    places = ("x", "exp", "log")
    good = 3.85
    scales = False
    cure = settings(scales=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"scal|normali|standardi"
    batch_size = 96
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.hidden = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.risk = nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21305)
        unit = torch.rand(960, 4, generator=generator)
        time = -torch.rand(960, generator=generator).log() * (1 - 3 * unit[:, 0] + 2 * unit[:, 2]).exp()
        event = (torch.rand(960, generator=generator) < 0.6).float()
        x = unit if self.scales else torch.tensor([40.0, 5.0, 10950.0, 700.0]) * (1 + unit)
        return {"x": x, "t": time, "e": event}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        order = batch["t"].argsort(descending=True)
        risk, event = self.risk(self.hidden(batch["x"][order]))[:, 0], batch["e"][order]
        log_risk = risk.exp().cumsum(0).log()  # fault
        return -((risk - log_risk) * event).sum() / event.sum()

    def score(self) -> float:
        """The loss in parts of 96 patients, with features that are scaled."""
        batch = self.clean()
        parts = [{name: field[start : start + 96] for name, field in batch.items()} for start in range(0, 960, 96)]
        return float(torch.stack([self.loss(part) for part in parts]).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)
