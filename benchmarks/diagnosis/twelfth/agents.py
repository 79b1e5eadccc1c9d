"""Policies, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SignedDeviations(Case):
    """A clipped policy gradient of Gaussian actions, whose deviation is the plain output of a layer.

    Report: github.com/sweetice/Deep-reinforcement-learning-with-pytorch/issues/35. Confirmed by readers: the deviation
    can be negative, and its log probability is NaN then; it is passed through a softplus.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.3
    is_positive = False
    cure = settings(is_positive=True)
    cured_by = r"softplus|positive|exp\b|clamp|square"
    batch_size = 128
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(5, 32), nn.Tanh())
        self.mean, self.deviation = nn.Linear(32, 2), nn.Linear(32, 2)
        nn.init.constant_(self.deviation.bias, 1.0)

    def data(self) -> tuple[Tensor]:
        return (torch.randn(2048, 5, generator=noise(12101)),)

    def best(self, state: Tensor) -> Tensor:
        return state[:, :2].tanh()

    def policy(self, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(state)
        deviation = self.deviation(hidden)
        return self.mean(hidden), functional.softplus(deviation) + 1e-2 if self.is_positive else deviation

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        mean, deviation = self.policy(state)
        return -(((action - mean) / deviation).square() / 2 + deviation.log()).sum(1)  # fault

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (state,), (optimizer,) = batch, optimizers
        with torch.no_grad():
            mean, deviation = self.policy(state)
            action = mean + deviation * torch.randn_like(mean)
            before = self.log_prob(state, action)
            reward = -(action - self.best(state)).square().sum(1)
            ahead = (reward - reward.mean()) / (reward.std() + 1e-8)
        for _ in range(4):
            optimizer.zero_grad()
            ratio = (self.log_prob(state, action) - before).exp()
            loss = -torch.minimum(ratio * ahead, ratio.clamp(0.8, 1.2) * ahead).mean()
            watch.loss(loss)
            backward(loss)
            optimizer.step()

    def score(self) -> float:
        (state,) = self.clean()
        return float((self.policy(state)[0] - self.best(state)).abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class UnsquashedActions(Case):
    """Soft actor-critic that takes the log probability of an action from the action itself, cut off near its ends.

    Report: github.com/ray-project/ray/issues/14878. Found by the reporter: once actions saturate, the raw action
    that is recovered stays where it was cut off, so that the log probability falls and its gradients explode as the
    mean moves on. The raw sample is to be kept.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.35
    keeps_raw = False
    cure = settings(keeps_raw=True)
    cured_by = r"raw|clamp|bound|floor"
    batch_size = 64
    lr = 1e-2
    steps = 800

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 4))
        self.critic = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12102)
        return torch.randn(2048, 4, generator=random), torch.rand(2048, 2, generator=random) * 2 - 1

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        return 40 * action[:, 0] * state[:, 0].sign() - 4 * (action[:, 1] - state[:, 1].tanh() / 2).square()

    def value(self, state: Tensor, action: Tensor) -> Tensor:
        return self.critic(torch.cat([state, action], 1))[:, 0]

    def act(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(state).chunk(2, 1)
        log_std = log_std.clamp(-20, 2)
        raw = mean + log_std.exp() * torch.randn_like(mean)
        action = raw.tanh()
        if not self.keeps_raw:
            raw = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))  # fault
        log_prob = -((raw - mean) / log_std.exp()).square() / 2 - log_std
        return action, (log_prob - torch.log(1 - raw.tanh().square() + 1e-6)).sum(1)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (state, tried), (acting, judging) = batch, optimizers
        judging.zero_grad()
        wrong = functional.mse_loss(self.value(state, tried), self.reward(state, tried))
        watch.loss(wrong)
        backward(wrong)
        judging.step()
        acting.zero_grad()
        action, log_prob = self.act(state)
        loss = (0.2 * log_prob - self.value(state, action)).mean()
        watch.loss(loss)
        backward(loss)
        acting.step()

    def score(self) -> float:
        state, _ = self.clean()
        action = self.actor(state)[:, :2].tanh()
        return float((action[:, 1] - state[:, 1].tanh() / 2).abs().mean())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=self.lr),
            torch.optim.Adam(self.critic.parameters(), lr=5e-3),
        ]
