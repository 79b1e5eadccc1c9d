"""Agents, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class ActorThroughTheCritic(Case):
    """Asynchronous actor-critic with one network for both: after a while the policy takes one action only.

    Report: github.com/coreylynch/async-rl/issues/8. Found by a reader and confirmed by another: the gradient of the
    actor's loss must not flow through the value of the critic.
    """

    kinds = ("loss-without-floor", "moving-target")
    host = "plain"
    good = 0.3
    stops_gradient = False
    cure = settings(stops_gradient=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"detach|stop.gradient|no_grad"
    batch_size = 32
    lr = 1e-3
    steps = 600

    def build(self) -> None:
        self.shared = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.p_out, self.v_out = nn.Linear(64, 4), nn.Linear(64, 1)

    def data(self) -> dict[str, Tensor]:
        return {"s": torch.randn(2560, 8, generator=noise(24601))}

    def best(self, s: Tensor) -> Tensor:
        return (s[:, 0] > 0).long() + 2 * (s[:, 1] > 0).long()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        s = batch["s"]
        shared = self.shared(s)
        probs, v = self.p_out(shared).softmax(1), self.v_out(shared)[:, 0]
        a = probs.detach().multinomial(1)
        log_prob = (probs.gather(1, a)[:, 0] + 1e-8).log()
        r = (a[:, 0] == self.best(s)).float()
        p_loss = -log_prob * (r - (v.detach() if self.stops_gradient else v))
        v_loss = 0.5 * (r - v).square()
        return (p_loss + 0.5 * v_loss).mean()

    def score(self) -> float:
        """One less the probability of the best action."""
        s = self.data()["s"]
        probs = self.p_out(self.shared(s)).softmax(1)
        return float(1 - probs.gather(1, self.best(s)[:, None]).mean())


class WheelAtItsEnd(Case):
    """A driver by deterministic policy gradients: soon steering and speed are at their ends and stay there.

    Report: github.com/ZhihanLee/DDPG_Learning/issues/2. Found by the author: the states have to be normalized.
    """

    kinds = ("unscaled-data",)
    places = ("state", "next_state")
    host = "plain"
    good = 0.3
    normalizes = False
    cure = settings(normalizes=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"normali|standardi|scal"
    batch_size = 64
    lr = 1e-3
    steps = 800

    def build(self) -> None:
        self.actor = nn.Sequential(
            nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), nn.Tanh()
        )
        self.critic = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(24602)
        unit = torch.randn(2560, 6, generator=generator)
        action = 2 * torch.rand(2560, 2, generator=generator) - 1
        scale = torch.ones(6) if self.normalizes else torch.tensor([300.0, 150.0, 120.0, 80.0, 180.0, 60.0])
        return {"state": unit * scale, "action": action, "reward": self.rewards(unit, action)}

    def rewards(self, unit: Tensor, action: Tensor) -> Tensor:
        best = torch.stack([unit[:, 0] - unit[:, 1], unit[:, 2] + unit[:, 3]], 1).div(3).tanh()
        return 1 - (action - best).square().sum(1)

    def value(self, state: Tensor, action: Tensor) -> Tensor:
        return self.critic(torch.cat([state, action], 1))[:, 0]

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        actor_optimizer, critic_optimizer = optimizers
        critic_loss = functional.mse_loss(self.value(batch["state"], batch["action"]), batch["reward"])
        watch.loss(critic_loss)
        critic_optimizer.zero_grad()
        backward(critic_loss)
        critic_optimizer.step()
        actor_loss = -self.value(batch["state"], self.actor(batch["state"])).mean()
        watch.loss(actor_loss)
        actor_optimizer.zero_grad()
        backward(actor_loss)
        actor_optimizer.step()

    def score(self) -> float:
        """By how much the rewards of the actor are less than the largest ones."""
        unit = torch.randn(2560, 6, generator=noise(24602))
        return float(1 - self.rewards(unit, self.actor(self.data()["state"])).mean())

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr) for one in (self.actor, self.critic)]
