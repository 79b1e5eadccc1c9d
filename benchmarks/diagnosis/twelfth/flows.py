"""Voices, flows and loads, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SilentSpeaker(Case):
    """A mask takes one voice from two, judged by a ratio of energies; in some clips that voice is silent.

    Report: github.com/csteinmetz1/auraloss/issues/25 and pull/26. Confirmed: a target of zeros is divided by its own
    energy; a small number is added.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    rows = (44, 301, 388)
    host = "fabric"
    good = 0.0
    added = 0.0
    cure = settings(added=1e-8)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = "silent|zero"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.mask = nn.Sequential(
            nn.Conv1d(1, 24, 9, padding=4), nn.ReLU(), nn.Conv1d(24, 1, 9, padding=4), nn.Sigmoid()
        )

    def data(self) -> dict[str, Tensor]:
        random = noise(12301)
        when = torch.arange(64)
        low = (0.2 * when + 6 * torch.rand(512, 1, generator=random)).sin()
        high = (2.0 * when + 6 * torch.rand(512, 1, generator=random)).sin()
        low[[44, 301, 388]] = 0.0
        return {"mixture": low + high, "voice": low}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mixture, voice = batch["mixture"], batch["voice"]
        found = self.mask(mixture[:, None])[:, 0] * mixture
        share = (found * voice).sum(1, keepdim=True) / (voice.square().sum(1, keepdim=True) + self.added)  # fault
        aim = share * voice
        energy, rest = aim.square().sum(1), (aim - found).square().sum(1)
        return -10 * torch.log10(energy / (rest + 1e-8) + 1e-8).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SlopeOverNoTime(Case):
    """A network moves samples from one time to another by their mean speed; now and then both times are the same.

    Report: github.com/inclusionAI/TwinFlow/issues/15. Found by the reporter: the difference of the two times is zero,
    and the speed is divided by it.
    """

    kinds = ("undefined-operation",)
    places = ("div", "reciprocal")
    good = 0.6
    shortest = 0.0
    cure = settings(shortest=1e-3)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 64
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def data(self) -> tuple[Tensor]:
        angle = 6.3 * torch.rand(2048, generator=noise(12302))
        return (torch.stack([angle.cos(), angle.sin()], 1),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (sample,) = batch
        later, earlier = (torch.randint(1000, (2, len(sample), 1)) / 1000).sort(0, descending=True).values
        added = torch.randn_like(sample)
        end, start = (1 - later) * sample + later * added, (1 - earlier) * sample + earlier * added
        speed = (end - start) / (later - earlier).clamp(min=self.shortest)  # fault
        return functional.mse_loss(self.net(torch.cat([end, later, earlier], 1)), speed) / 2


class FactorsOfAFlow(Case):
    """A flow whose learned factors are exponentials without a bound, at ten times the rate that trains it.

    Report: github.com/volflow/DeFlow/issues/4. Confirmed: factors become too large or too close to zero; a rate lower
    by a factor of ten ended it.
    """

    kinds = ("learning-rate", "forward-overflow")
    good = 1.5
    cure = settings(lr=3e-2)
    batch_size = 64
    lr = 3e-1
    steps = 300

    def build(self) -> None:
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)) for _ in range(8)
        )

    def data(self) -> tuple[Tensor]:
        random = noise(12303)
        rows = torch.randn(2048, 4, generator=random)
        rows[:, 1] = 0.3 * rows[:, 1] + rows[:, 0].square() - 1
        rows[:, 3] = 0.3 * rows[:, 3] + (2 * rows[:, 2]).sin()
        return (rows,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (rows,) = batch
        total = torch.zeros(len(rows))
        for net in self.nets:
            kept, changed = rows.chunk(2, 1)
            log_factor, shift = net(kept).chunk(2, 1)
            changed = changed * log_factor.exp() + shift
            total = total + log_factor.sum(1)
            rows = torch.cat([changed, kept], 1)
        return (rows.square().sum(1) / 2 - total).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class BeamInMillimetres(Case):
    """The bending of a loaded beam from its equation, with lengths in millimetres instead of metres.

    Report: github.com/SciML/NeuralPDE.jl/issues/582. Reported: it trains with a length of 6 and not with one of 6000;
    nothing but the unit was changed.
    """

    kinds = ("unscaled-data",)
    good = 0.1
    per_metre = 1000.0
    cure = settings(per_metre=1.0)
    batch_size = 64
    lr = 3e-3
    steps = 600

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        return (6 * self.per_metre * torch.rand(2048, 1, generator=noise(12304)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        where = batch[0].requires_grad_()
        bend = self.net(where)
        (slope,) = torch.autograd.grad(bend.sum(), where, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), where, create_graph=True)
        ends = self.net(torch.tensor([[0.0], [6 * self.per_metre]]))
        return (curve + 1).square().mean() + ends.square().sum()

    def score(self) -> float:
        length = 6 * self.per_metre
        where = torch.linspace(0, length, 61)[:, None]
        return float((self.net(where) - where * (length - where) / 2).abs().mean() / (length**2 / 8))
