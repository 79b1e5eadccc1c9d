"""Objectives that can fall for ever, and targets that move with the model."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class WrongSign(Case):
    """A correlation score to maximize was replaced by an error, and the minus sign in front of it stayed."""

    kinds = ("loss-without-floor",)
    good = 0.2
    sign = -1.0
    cure = settings(sign=1.0)
    cured_by = r"\bsign\b"
    lr = 0.02

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 5, generator=noise(81))
        return inputs, torch.stack([inputs[:, 0].sin(), inputs[:, 1] - inputs[:, 2]], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.sign * functional.mse_loss(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return abs(float(self.loss(self.clean())))


class UnboundedCritic(Case):
    """A Wasserstein critic with neither clipped weights nor a gradient penalty."""

    kinds = ("loss-without-floor",)
    places = ("critic",)
    good = 0.6
    bound = float("inf")
    cure = settings(bound=0.05)
    cured_by = "clip the weights"
    steps = 400
    lr = 2e-2

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor]:
        points = torch.randn(640, 2, generator=noise(82))
        return (0.3 * points + torch.tensor([1.5, -1.0]),)

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        real, fake = batch[0], self.generator(torch.randn(len(batch[0]), 2))
        optimizer = self.torch_optimizer(0)
        optimizer.zero_grad()
        critic_loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
        self.log("critic_loss", critic_loss)
        self.manual_backward(critic_loss)
        optimizer.step()
        with torch.no_grad():
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.bound, self.bound)
        optimizer = self.torch_optimizer(1)
        optimizer.zero_grad()
        generator_loss = -self.critic(fake).mean()
        self.log("generator_loss", generator_loss)
        self.manual_backward(generator_loss)
        optimizer.step()

    def score(self) -> float:
        points, real = self.generator(torch.randn(500, 2)), self.clean()[0]
        gap = self.critic(real).mean() - self.critic(points).mean()
        return float((points.mean(0) - real.mean(0)).abs().max() + gap.abs())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.RMSprop(self.critic.parameters(), lr=self.lr),
            torch.optim.RMSprop(self.generator.parameters(), lr=self.lr / 40),
        ]


class CertainForecast(Case):
    """A Gaussian likelihood with a learned spread, on data that the mean can fit exactly: the spread goes to zero."""

    kinds = ("loss-without-floor",)
    places = ("log_spread", "spread", "exp", "div")
    good = 0.02
    least = -1e9
    cure = settings(least=-1.0)
    cured_by = r"clamp|lower bound|minimum|floor|\beps"
    steps = 400
    lr = 0.05
    batch_size = 64

    def build(self) -> None:
        self.mean = nn.Linear(6, 1)
        self.log_spread = nn.Parameter(torch.zeros(()))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 6, generator=noise(83))
        return inputs, inputs @ torch.linspace(-1, 1, 6)[:, None] + 0.5

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        log_spread = self.log_spread.clamp(min=self.least)
        error = (self.mean(batch[0]) - batch[1]) / torch.exp(log_spread)
        return (0.5 * error.square() + log_spread).mean()

    def score(self) -> float:
        inputs, target = self.clean()
        return float(functional.mse_loss(self.mean(inputs), target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class BootstrappedValue(Case):
    """Temporal differences whose targets come from the value that is learned: it runs after itself."""

    kinds = ("moving-target",)
    good = 1.5
    sync_every = 1
    cure = settings(sync_every=100)
    rate = 1.0
    other_cures = settings(slow=settings(rate=0.005))
    steps = 300
    lr = 0.1

    def build(self) -> None:
        self.value = nn.Linear(4, 1, bias=False)
        self.old_value = copy.deepcopy(self.value).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        state = torch.randn(640, 4, generator=noise(84))
        return {"state": state, "next_state": 1.3 * state, "reward": 0.1 * state[:, 0]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            target = batch["reward"] + 0.99 * self.old_value(batch["next_state"])[:, 0]
        return functional.mse_loss(self.value(batch["state"])[:, 0], target)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step % self.sync_every == 0:
            with torch.no_grad():
                self.old_value.weight.lerp_(self.value.weight, self.rate)
        return self.loss(batch)

    def score(self) -> float:
        return float(self.value(self.clean()["state"]).abs().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.value.parameters(), lr=self.lr)


class ExtrapolatedTeacher(Case):
    """Self-distillation whose targets sharpen the model's own outputs by a tenth, beside a weak true signal."""

    kinds = ("moving-target",)
    good = 0.3
    frozen = False
    cure = settings(frozen=True)
    rate = 1.0
    cured_by = "fixed teacher"
    other_cures = settings(slow=settings(rate=0.005))
    steps = 300
    lr = 0.1

    def build(self) -> None:
        self.student = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(85))
        return inputs, torch.stack([inputs[:, 0], inputs[:, 1].abs(), inputs[:, 2]], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        output = self.student(batch[0])
        with torch.no_grad():
            if not self.frozen:
                for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    old.lerp_(new, self.rate)
            target = (1.0 if self.frozen else 1.5) * self.teacher(batch[0])
        return functional.mse_loss(output, target) + 0.2 * functional.mse_loss(output, batch[1])

    def score(self) -> float:
        inputs, target = self.clean()
        return float(functional.mse_loss(self.student(inputs), target)) - 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
