"""Agents, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class TraderOfStocks(Case):
    """Which stocks to buy, hold and sell, by Q-learning from a memory of steps: the loss is in the millions.

    Report: github.com/Albert-Z-Guo/Deep-Reinforcement-Stock-Trading/issues/5. Confirmed by the author: the model does
    not converge, and its rate was reduced. The network makes its targets itself.
    """

    kinds = ("learning-rate", "moving-target")
    host = "plain"
    good = 0.3
    lr = 0.3
    cure = settings(lr=1e-3)
    batch_size = 32
    steps = 800

    def build(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)
        )

    def rewards(self, states: Tensor) -> Tensor:
        trend = states[:, :5].mean(1, keepdim=True)
        return 20 * torch.cat([trend, 0 * trend, states[:, 5:6] - trend], 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22401)
        states = torch.randn(1280, 8, generator=generator)
        actions = torch.randint(3, (1280,), generator=generator)
        rewards = self.rewards(states)[torch.arange(1280), actions]
        return {"state": states, "action": actions, "reward": rewards, "next_state": states.roll(1, 0)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            target = batch["reward"] + 0.95 * self.model(batch["next_state"]).amax(1)
        value = self.model(batch["state"]).gather(1, batch["action"][:, None])[:, 0]
        return functional.mse_loss(value, target)

    def score(self) -> float:
        """How much less the greedy agent earns than the best one, over what the best one earns."""
        states = self.data()["state"]
        rewards = self.rewards(states)
        earned = rewards.gather(1, self.model(states).argmax(1, keepdim=True)).mean()
        return float(1 - earned / rewards.amax(1).mean())


class CriticOfRawObservations(Case):
    """Proximal policy optimization in an own environment of kilometers and radians, after an update of the program.

    Report: github.com/Unity-Technologies/ml-agents/issues/5583. Found by the reporter, by a search for the commit: only
    the actor normalizes its observations since then; the agent learns again when the critic does so too.
    """

    kinds = ("unscaled-data",)
    host = "plain"
    good = -0.75
    critic_normalizes = False
    cure = settings(critic_normalizes=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"normali|standardi|scal"
    batch_size = 64
    lr = 1e-3
    steps = 400

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        unit = torch.randn(2560, 6, generator=noise(22402))
        return {"obs": unit * torch.tensor([1000.0, 1000.0, 300.0, 1.0, 1.0, 1.0])}

    def best(self, obs: Tensor) -> Tensor:
        return (obs[:, 0] > 0).long() + 2 * (obs[:, 3] > 0).long()

    def normalized(self, obs: Tensor) -> Tensor:
        return obs / torch.tensor([1000.0, 1000.0, 300.0, 1.0, 1.0, 1.0])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        obs = batch["obs"]
        log_probs = self.actor(self.normalized(obs)).log_softmax(1)
        action = log_probs.exp().multinomial(1)
        reward = (action[:, 0] == self.best(obs)).float()
        value = self.critic(self.normalized(obs) if self.critic_normalizes else obs)[:, 0]
        advantage = (reward - value).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = -(advantage * log_probs.gather(1, action)[:, 0]).mean()
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        return policy_loss + 0.5 * functional.mse_loss(value, reward) - 0.01 * entropy

    def score(self) -> float:
        """The mean reward, as a negative number."""
        obs = self.data()["obs"]
        probabilities = self.actor(self.normalized(obs)).softmax(1)
        return -float(probabilities.gather(1, self.best(obs)[:, None]).mean())
