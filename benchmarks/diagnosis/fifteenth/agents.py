"""An agent, after a public report."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RawObservations(Case):
    """A soft actor and its critic learn from stored steps of a market, whose observations are raw prices and volumes.

    Report: github.com/tensorflow/agents/issues/622. Found by the reporter: the exponential of the deviation of the
    actor exceeds float32, since the observations are far too large; with normalized ones it works.
    """

    kinds = ("unscaled-data", "forward-overflow")
    places = ("exp", "observation")
    host = "plain"
    good = 0.15
    normalizes = False
    cure = settings(normalizes=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"observation|normali[sz]"
    batch_size = 64
    lr = 2e-3
    steps = 390

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.means, self.stds = nn.Linear(48, 1), nn.Linear(48, 1)
        self.critic = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(15601)
        market = torch.randn(1024, 4, generator=generator)
        action = 2 * torch.rand(1024, 1, generator=generator) - 1
        reward = -(action[:, 0] - (market[:, 0] - market[:, 1]).tanh()).square()
        observation = market if self.normalizes else market * torch.tensor([900.0, 60.0, 20.0, 8000.0]) + 30000.0
        return {"observation": observation, "action": action, "reward": reward, "market": market}

    def policy(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.actor(observation)
        return self.means(hidden), self.stds(hidden).exp()  # fault

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        actor_optimizer, critic_optimizer = optimizers
        observation = batch["observation"]
        critic_loss = functional.mse_loss(
            self.critic(torch.cat([observation, batch["action"]], 1))[:, 0], batch["reward"]
        )
        critic_optimizer.zero_grad()
        watch.loss(critic_loss)
        backward(critic_loss)
        critic_optimizer.step()
        means, stds = self.policy(observation)
        raw = means + stds * torch.randn_like(stds)
        log_prob = (
            -((raw - means) / stds).square() / 2 - stds.log() - 2 * (0.6931 - raw - functional.softplus(-2 * raw))
        )
        value = self.critic(torch.cat([observation, raw.tanh()], 1))
        actor_loss = (0.01 * log_prob - value).mean()
        actor_optimizer.zero_grad()
        watch.loss(actor_loss)
        backward(actor_loss)
        actor_optimizer.step()

    def score(self) -> float:
        data = self.clean()
        means, _ = self.policy(data["observation"])
        wanted = (data["market"][:, :1] - data["market"][:, 1:2]).tanh()
        return float((means.tanh() - wanted).square().mean())

    def configure_optimizers(self) -> Any:
        actor = [*self.actor.parameters(), *self.means.parameters(), *self.stds.parameters()]
        return [torch.optim.Adam(actor, lr=self.lr), torch.optim.Adam(self.critic.parameters(), lr=self.lr)]
