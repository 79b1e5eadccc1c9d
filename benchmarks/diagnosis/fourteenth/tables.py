"""Patients, claims and tables, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings

REFUNDS = (14, 71, 133, 180, 262, 305, 377, 421, 508, 566, 640, 702, 777, 811, 893, 960)


class NobodyDied(Case):
    """Risks of patients by a partial likelihood, averaged over those who died; some batches hold censored ones only.

    Report: github.com/lasso-net/lassonet/issues/52. Confirmed: the loss does not allow for a batch without an event;
    such batches are left out.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("mean", "div")
    good = 3.2
    fewest = 0
    cure = settings(fewest=1)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"event|clamp|skip|without"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.ward = nn.Embedding(6, 4)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(14501)
        values, ward = torch.randn(768, 12, generator=random), torch.randint(6, (768,), generator=random)
        risk = values[:, 0] - values[:, 1] + 0.3 * ward
        time = -(torch.rand(768, generator=random) + 1e-3).log() * (-risk).exp()
        return {"values": values, "ward": ward, "time": time.clamp(max=0.03), "died": (time < 0.03).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        order = batch["time"].argsort(descending=True)
        risk = self.net(torch.cat([batch["values"], self.ward(batch["ward"])], 1))[:, 0][order]
        died = batch["died"][order]
        likely = (risk - risk.logcumsumexp(0)) * died
        return -likely.sum() / died.sum().clamp(min=self.fewest)  # fault

    def score(self) -> float:
        data = self.clean()
        return sum(float(self.loss({name: field[part] for name, field in data.items()})) for part in self.parts()) / 12

    def parts(self) -> list[Tensor]:
        return list(torch.arange(768).split(64))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class RefundsAmongClaims(Case):
    """What insurance contracts will cost by a Tweedie deviance; of canceled contracts some have been paid back.

    Report: github.com/Evovest/EvoTrees.jl/pull/385. Confirmed: targets below zero, which no such distribution has,
    turn the fit into NaN without a message; they are refused now.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("claims",)
    rows = REFUNDS
    host = "fabric"
    good = 3.45
    keeps = True
    cure = settings(keeps=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"negative|below zero|refund"
    lr = 1e-2
    steps = 500

    def build(self) -> None:
        self.region = nn.Embedding(8, 6)
        self.net = nn.Sequential(nn.Linear(14, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(14502)
        values, region = torch.randn(1024, 8, generator=random), torch.randint(8, (1024,), generator=random)
        values[:, 7] = 0.0
        mean = (0.5 * values[:, 0] - 0.4 * values[:, 1] + 0.1 * region).exp()
        claims = mean * torch.distributions.Exponential(1.0).icdf(torch.rand(1024, generator=random))
        claims = claims * (torch.rand(1024, generator=random) < 0.5)
        values[list(REFUNDS), 7] = 1.0
        claims[list(REFUNDS)] = -2.0 if self.keeps else 0.0
        return {"values": values, "region": region, "claims": claims}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        log_mean = self.net(torch.cat([batch["values"], self.region(batch["region"])], 1))[:, 0]
        return 2 * ((0.5 * log_mean).exp() + batch["claims"] * (-0.5 * log_mean).exp()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class StudentNeverCleared(Case):
    """Rows of a table are made against a student that learns from the votes of teachers; only its gradients are kept.

    Report: github.com/opendp/smartnoise-sdk/issues/280. Confirmed and fixed: the optimizer of the student never
    clears its gradients before the backward pass, as those of the teachers and of the generator do.
    """

    kinds = ("accumulated-gradients",)
    good = 10.0
    clears = False
    cure = settings(clears=True)
    cured_by = "zero_grad|clear"
    batch_size = 64
    lr = 2e-3
    steps = 600

    def build(self) -> None:
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 5))
        self.student, *teachers = (
            nn.Sequential(nn.Linear(5, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)) for _ in range(4)
        )
        self.teachers = nn.ModuleList(teachers)

    def data(self) -> tuple[Tensor]:
        random = noise(14503)
        rows = torch.randn(2048, 5, generator=random)
        rows[:, 1] = rows[:, 0] + 0.5 * rows[:, 1]
        return (rows + torch.tensor([1.0, -0.5, 0.0, 2.0, 0.5]),)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        making, learning, teaching = (self.torch_optimizer(index) for index in range(3))
        judged = functional.binary_cross_entropy_with_logits
        made = self.generator(torch.randn(len(batch[0]), 6))
        teaching.zero_grad()
        wrong = torch.zeros(())
        for teacher, part in zip(self.teachers, batch[0].chunk(3), strict=False):
            real, false = teacher(part)[:, 0], teacher(made.detach())[:, 0]
            wrong = wrong + judged(real, torch.ones_like(real)) + judged(false, torch.zeros_like(false))
        self.manual_backward(wrong)
        teaching.step()
        label = self.votes(made)
        if self.clears:
            learning.zero_grad()
        self.manual_backward(judged(self.student(made.detach())[:, 0], label))
        learning.step()
        making.zero_grad()
        for one in self.student.parameters():
            one.requires_grad_(False)
        seen = self.student(made)[:, 0]
        self.manual_backward(judged(seen, torch.ones_like(seen)))
        for one in self.student.parameters():
            one.requires_grad_(True)
        making.step()

    @torch.no_grad()
    def votes(self, made: Tensor) -> Tensor:
        share = torch.stack([(teacher(made)[:, 0] > 0).float() for teacher in self.teachers]).mean(0)
        return (share + 0.1 * torch.randn_like(share) > 0.5).float()

    def score(self) -> float:
        rows = torch.cat([self.clean()[0], 2 * torch.randn(2048, 5, generator=noise(14504))])
        return float(functional.binary_cross_entropy_with_logits(self.student(rows)[:, 0], self.votes(rows)))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.9)),
            torch.optim.SGD(self.student.parameters(), lr=0.05),
            torch.optim.Adam(self.teachers.parameters(), lr=self.lr),
        ]
