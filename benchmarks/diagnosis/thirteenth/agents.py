"""Agents and simulated bodies, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class OneSampleLeft(Case):
    """A clipped policy gradient with small batches of a rollout of 65 samples, of which the last one holds one sample.

    Report: github.com/DLR-RM/stable-baselines3/issues/325 and pull/1028. Confirmed: the deviation of the advantages of
    a single sample is NaN; a batch of one is not normalized.
    """

    kinds = ("empty-reduction",)
    places = ("std", "var")
    host = "plain"
    good = 0.25
    normalizes_one = True
    cure = settings(normalizes_one=False)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"more than one|one sample|single"
    batch_size = 65
    lr = 5e-3
    steps = 120

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
        self.deviation = nn.Parameter(torch.zeros(2))
        self.critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        return (torch.randn(65 * 32, 4, generator=noise(13201)),)

    def best(self, state: Tensor) -> Tensor:
        return (state[:, :2] - state[:, 2:]).tanh()

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        deviation = self.deviation.exp()
        return -(((action - self.actor(state)) / deviation).square() / 2 + self.deviation).sum(1)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (state,), (acting, judging) = batch, optimizers
        with torch.no_grad():
            mean = self.actor(state)
            action = mean + self.deviation.exp() * torch.randn_like(mean)
            before = self.log_prob(state, action)
            gain = -(action - self.best(state)).square().sum(1)
        for part in torch.randperm(len(state)).split(32):
            value = self.critic(state[part])[:, 0]
            ahead = (gain[part] - value).detach()
            if len(part) > 1 or self.normalizes_one:
                ahead = (ahead - ahead.mean()) / (ahead.std() + 1e-8)  # fault
            ratio = (self.log_prob(state[part], action[part]) - before[part]).exp()
            policy = -torch.minimum(ratio * ahead, ratio.clamp(0.8, 1.2) * ahead).mean()
            loss = policy + 0.5 * functional.mse_loss(value, gain[part])
            acting.zero_grad()
            judging.zero_grad()
            watch.loss(loss)
            backward(loss)
            acting.step()
            judging.step()

    def score(self) -> float:
        (state,) = self.clean()
        return float((self.actor(state) - self.best(state)).abs().mean())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam([*self.actor.parameters(), self.deviation], lr=self.lr),
            torch.optim.Adam(self.critic.parameters(), lr=self.lr),
        ]


class TargetThatIsTheNetwork(Case):
    """Values of states by bootstrapping, whose target network refers to the variables that are trained.

    Report: github.com/tensorforce/tensorforce/pull/81. Confirmed: target variables referenced the training variables,
    so that there was no target network; it has variables of its own.
    """

    kinds = ("moving-target",)
    host = "plain"
    good = 0.8
    copies = False
    cure = settings(copies=True)
    batch_size = 64
    lr = 0.05
    steps = 900

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.target = copy.deepcopy(self.net).requires_grad_(False) if self.copies else self.net  # fault
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        angle = 6.2832 * torch.rand(2048, generator=noise(13202))
        later = angle + 0.35
        return {
            "state": torch.stack([angle.cos(), angle.sin()], 1),
            "reward": angle.cos()[:, None],
            "next": torch.stack([later.cos(), later.sin()], 1),
        }

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        if self.taken % 30 == 0:
            self.target.load_state_dict(self.net.state_dict())
        self.taken += 1
        (optimizer,) = optimizers
        optimizer.zero_grad()
        with torch.no_grad():
            aim = batch["reward"] + 0.97 * self.target(batch["next"])
        loss = functional.mse_loss(self.net(batch["state"]), aim)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def score(self) -> float:
        data = self.clean()
        angle, value = torch.atan2(data["state"][:, 1], data["state"][:, 0]), torch.zeros(2048)
        for step in range(300):
            value += 0.97**step * (angle + 0.35 * step).cos()
        return float((self.net(data["state"])[:, 0] - value).abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)


class GradientsThroughASimulation(Case):
    """A policy that is trained through the equations of a body whose motion is chaotic, over whole episodes.

    Report: github.com/google/brax/issues/186 and issues/38. Named by a maintainer: gradients through long trajectories
    are chaotic; they are cut off after few steps.
    """

    kinds = ("recurrence",)
    good = 0.85
    truncation = 1000
    cure = settings(truncation=2)
    cured_by = r"detach|fewer steps|horizon"
    batch_size = 32
    lr = 1e-2
    steps = 120

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1), nn.Tanh())

    def data(self) -> tuple[Tensor]:
        return (6.2832 * torch.rand(1024, 2, generator=noise(13203)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        place, speed = batch[0].unbind(1)
        cost = torch.zeros(())
        for step in range(40):
            if step % self.truncation == 0:
                place, speed = place.detach(), speed.detach()
            seen = torch.stack([place.sin(), place.cos(), speed.sin(), speed.cos()], 1)
            speed = 0.1 * speed + 3.0 * place.sin() + 4.0 * self.policy(seen)[:, 0]  # fault
            place = place + speed  # fault
            cost = cost + (1 - place.cos()).mean()
        return cost / 40
