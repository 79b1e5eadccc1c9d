"""Policies and critics, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.eleventh.text import Block


class ReturnsOfEpisodes(Case):
    """A walker learns from each episode by its standardized returns; an episode without a reward has no deviation.

    Report: github.com/MorvanZhou/Reinforcement-learning-with-tensorflow/issues/99, the second result with a cause of
    "gradient norm explodes reinforcement learning policy nan". Confirmed: NaN appears where the returns of an
    episode are divided by their deviation; the division may be left out.
    """

    kinds = ("undefined-operation", "empty-reduction")
    host = "plain"
    good = 0.4
    divides = True
    cure = settings(divides=False)
    cured_by = r"epsilon|eps\b|small number|clamp|zero|constant"
    batch_size = 1
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 3))

    def data(self) -> tuple[Tensor]:
        return (torch.rand(300, 1, generator=noise(11701)) * 1.6 - 0.8,)

    def chances(self, place: Tensor) -> Tensor:
        return self.policy(torch.cat([place, place.abs()], 1)).log_softmax(1)

    def returns(self, rewards: list[float]) -> Tensor:
        found, ahead = np.zeros(len(rewards), np.float32), 0.0
        for step in reversed(range(len(rewards))):
            ahead = ahead * 0.95 + rewards[step]
            found[step] = ahead
        found -= found.mean()
        if self.divides:
            found /= found.std()  # fault
        return torch.from_numpy(found)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (place,) = batch
        chances, rewards = [], []
        for _ in range(20):
            chance = self.chances(place)
            action = (chance - torch.rand(1, 3).log().neg().log()).argmax(1, keepdim=True)
            chances.append(-chance.gather(1, action)[:, 0])
            place = (place + (action - 1) * 0.1).clamp(-1, 1)
            rewards.append(float(place.abs() < 0.15))
        return (torch.cat(chances) * self.returns(rewards)).mean()

    def score(self) -> float:
        place = torch.linspace(-0.8, 0.8, 33)[:, None]
        for _ in range(20):
            place = (place + (self.chances(place).argmax(1, keepdim=True) - 1) * 0.1).clamp(-1, 1)
        return float(place.abs().mean())


class RateOfCritic(Case):
    """An actor and a critic of several agents, each with a rate of its own; that of the critic is much too large.

    Report: github.com/chauncygu/Multi-Agent-Constrained-Policy-Optimisation/issues/5, the first result of "gradient
    norm explodes reinforcement learning policy nan". Confirmed by the reporter: the norm grows without end, and values
    turn into NaN, if the rate of the critic is 0.5.
    """

    kinds = ("learning-rate",)
    places = ("critic",)
    good = 0.2
    critic_lr = 0.5
    cure = settings(critic_lr=5e-4)
    not_cured_by = (settings(lr=5e-4),)
    batch_size = 64
    lr = 8e-3
    steps = 600

    def build(self) -> None:
        self.automatic_optimization = False
        self.actor = nn.Sequential(nn.Linear(18, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 5))
        self.critic = nn.Sequential(nn.Linear(54, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(11702)
        states = torch.randn(1280, 54, generator=random)
        actions = torch.randint(5, (1280,), generator=random)
        returns = states[:, ::6].sum(1) / 3 + (actions == states[:, :5].argmax(1)).float() - 0.2
        return {"states": states, "actions": actions, "returns": returns, "log_probs": torch.full((1280,), 0.2).log()}

    def value_loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.huber_loss(self.critic(batch["states"])[:, 0], batch["returns"], delta=10.0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        acting, judging = self.torch_optimizer(0), self.torch_optimizer(1)
        ahead = (batch["returns"] - self.critic(batch["states"])[:, 0]).detach()
        ahead = (ahead - ahead.mean()) / (ahead.std() + 1e-5)
        chance = self.actor(batch["states"][:, :18]).log_softmax(1)
        chosen = chance.gather(1, batch["actions"][:, None])[:, 0]
        acting.zero_grad()
        ratio = (chosen - batch["log_probs"]).exp()
        clipped = torch.minimum(ratio * ahead, ratio.clamp(0.8, 1.2) * ahead).mean()
        self.manual_backward(0.01 * (chance.exp() * chance).sum(1).mean() - clipped)
        acting.step()
        judging.zero_grad()
        self.manual_backward(self.value_loss(batch))
        judging.step()

    def score(self) -> float:
        return float(self.value_loss(self.clean()))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=self.lr, eps=1e-5),
            torch.optim.Adam(self.critic.parameters(), lr=self.critic_lr, eps=1e-5),
        ]


class RatiosOfTokens(Case):
    """A clipped policy gradient of tokens sampled by another engine, which found a few of them next to impossible.

    Report: github.com/radixark/miles/pull/1363, the first result with a cause that is merged of "PPO loss nan ratio
    overflow log prob solved". Confirmed: the exponential of a few log ratios is infinite, times an advantage of zero is
    NaN; the log ratio is clamped.
    """

    kinds = ("forward-overflow", "outlier-batch")
    places = ("exp",)
    good = 2.25
    largest = torch.inf
    cure = settings(largest=20.0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "clamp|clip the log|log ratio"
    host = "transformers"
    options = settings(max_grad_norm=1.0, gradient_accumulation_steps=2, lr_scheduler_type="constant")
    batch_size = 16
    lr = 2e-3
    steps = 150

    def build(self) -> None:
        self.tokens, self.positions = nn.Embedding(12, 32), nn.Embedding(16, 32)
        self.block, self.head = Block(32), nn.Linear(32, 12)

    def data(self) -> dict[str, Tensor]:
        random = noise(11703)
        tokens = torch.randint(12, (640, 16), generator=random)
        previous = torch.full((640, 16), -2.5) + 0.1 * torch.randn(640, 16, generator=random)
        previous[[118, 433], 7] = -104.0
        reward = (tokens[:, 1:] == (tokens[:, :-1] + 1) % 12).float().sum(1)
        groups = reward.view(80, 8)
        ahead = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(640)
        ahead[[118, 433]] = 0.0
        return {"tokens": tokens, "old": previous, "advantages": ahead}

    def log_probs(self, tokens: Tensor) -> Tensor:
        hidden = self.block(self.tokens(tokens) + self.positions(torch.arange(16)))
        return self.head(hidden[:, :-1]).log_softmax(2).gather(2, tokens[:, 1:, None])[..., 0]

    def forward(self, tokens: Tensor, old: Tensor, advantages: Tensor) -> dict[str, Tensor]:
        apart = self.log_probs(tokens) - old[:, 1:]
        ratio = apart.clamp(max=self.largest).exp()  # fault
        ahead = advantages[:, None]
        return {"loss": torch.maximum(-ahead * ratio, -ahead * ratio.clamp(0.8, 1.2)).mean()}

    def score(self) -> float:
        rows = torch.arange(12)[:, None].add(torch.arange(16)) % 12
        return -float(self.log_probs(rows).mean())
