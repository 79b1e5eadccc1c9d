"""Agents and imitations, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def walks_of_states(seed: int) -> tuple[Tensor, Tensor]:
    """Return states of a point that drifts in four dimensions, and the states after them."""
    generator = noise(seed)
    state = torch.randn(1280, 4, generator=generator)
    return state, 0.95 * state + 0.2 * torch.randn(1280, 4, generator=generator)


class ActorBeyondItsBounds(Case):
    """Soft actor-critic for a walking robot: the losses explode after some epochs, whatever the temperature.

    Report: github.com/thu-ml/tianshou/issues/332, solved by a developer in its pull request 333: the action is mapped
    into its bounds for the environment only, so that the critic sees the raw one, which has none.
    """

    kinds = ("moving-target", "loss-without-floor")
    host = "plain"
    good = 0.3
    bounds_action = False
    cure = settings(bounds_action=True)
    cured_by = r"tanh|bound|clamp"
    batch_size = 64
    lr = 1e-3
    steps = 900

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.critic = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.critic_old = deepcopy(self.critic).requires_grad_(False)

    def best(self, obs: Tensor) -> Tensor:
        return (3 * obs[:, :1]).tanh()

    def rewards(self, obs: Tensor, act: Tensor) -> Tensor:
        return act.tanh() * self.best(obs)

    def data(self) -> dict[str, Tensor]:
        obs, obs_next = walks_of_states(23101)
        act = 0.7 * torch.randn(1280, 1, generator=noise(23102))
        return {"obs": obs, "act": act, "rew": self.rewards(obs, act), "obs_next": obs_next}

    def value(self, critic: nn.Module, obs: Tensor, act: Tensor) -> Tensor:
        return critic(torch.cat([obs, act.tanh() if self.bounds_action else act], 1))

    def sample(self, obs: Tensor) -> Tensor:
        mean, log_std = self.actor(obs).chunk(2, 1)
        return mean + log_std.clamp(-5, 0).exp() * torch.randn_like(mean)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        critic_optim, actor_optim = optimizers
        with torch.no_grad():
            target = batch["rew"] + 0.97 * self.value(
                self.critic_old, batch["obs_next"], self.sample(batch["obs_next"])
            )
        critic_loss = functional.mse_loss(self.value(self.critic, batch["obs"], batch["act"]), target)
        watch.loss(critic_loss)
        critic_optim.zero_grad()
        backward(critic_loss)
        critic_optim.step()
        actor_loss = -self.value(self.critic, batch["obs"], self.sample(batch["obs"])).mean()
        watch.loss(actor_loss)
        actor_optim.zero_grad()
        backward(actor_loss)
        actor_optim.step()
        with torch.no_grad():
            for old, new in zip(self.critic_old.parameters(), self.critic.parameters(), strict=True):
                old.lerp_(new, 0.05)

    def score(self) -> float:
        """By how much the value of the mean actions exceeds all that can be earned, relative to that."""
        obs = self.data()["obs"]
        value = self.value(self.critic, obs, self.actor(obs)[:, :1]).mean()
        return float(value * (1 - 0.97) - 1)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr) for one in (self.critic, self.actor)]


class GeneratorInTheWrongDirection(Case):
    """A Wasserstein critic with clipped weights and its generator: the loss of the generator falls, its points leave.

    Report: github.com/Zeleni9/pytorch-wgan/pull/53. Found and fixed by the author: the backward pass of the generator's
    loss starts from one instead of minus one, so that it is trained in the wrong direction.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.6
    starts_from = 1.0
    cure = settings(starts_from=-1.0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"sign|direction|maximi[sz]e|negat"
    batch_size = 64
    lr = 1e-3
    steps = 1200

    def build(self) -> None:
        self.G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.D = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)
        )

    def data(self) -> tuple[Tensor, ...]:
        generator = noise(23105)
        images = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(1280, 2, generator=generator)
        return images, torch.randn(1280, 4, generator=generator)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        d_optimizer, g_optimizer = optimizers
        images, z = batch
        d_loss = self.D(self.G(z).detach()).mean() - self.D(images).mean()
        watch.loss(d_loss)
        d_optimizer.zero_grad()
        backward(d_loss)
        d_optimizer.step()
        with torch.no_grad():
            for p in self.D.parameters():
                p.clamp_(-0.1, 0.1)
        g_loss = self.D(self.G(z)).mean() * self.starts_from
        watch.loss(g_loss)
        g_optimizer.zero_grad()
        backward(g_loss)
        g_optimizer.step()

    def score(self) -> float:
        """The distance of the means of generated and of real points."""
        images, z = self.data()
        return float((self.G(z).mean(0) - images.mean(0)).norm())

    def configure_optimizers(self) -> Any:
        return [torch.optim.RMSprop(one.parameters(), lr=self.lr) for one in (self.D, self.G)]
