"""Critics and actors."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.case import Case, noise, settings


class SlopeOfAFlatCritic(Case):
    """A critic of rectifiers with a penalty on its slope; where it is flat the root of the slope has no derivative."""

    # github.com/keras-team/keras-io/issues/910, github.com/pytorch/pytorch/issues/2534
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.5
    eps = 0.0
    cure = settings(eps=1e-12)
    lr = 2e-3
    steps = 150
    batch_size = 64

    def build(self) -> None:
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        self.maker = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))

    def data(self) -> tuple[Tensor, ...]:
        random = noise(931)
        angle = 6.283 * torch.rand(1280, generator=random)
        return torch.stack([angle.cos(), angle.sin()], 1), torch.randn(1280, 4, generator=random)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        return (self.maker(batch[1]).mean(0) - batch[0].mean(0)).norm()

    def of_critic(self, real: Tensor, hidden: Tensor) -> Tensor:
        made = self.maker(hidden).detach()
        between = torch.linspace(0, 1, len(real))[:, None]
        mixed = (between * real + (1 - between) * made).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        size = torch.sqrt(slope.square().sum(1) + self.eps)  # fault
        return self.critic(made).mean() - self.critic(real).mean() + 10 * (size - 1).square().mean()

    def score(self) -> float:
        with torch.enable_grad():
            mixed = self.clean()[0][:256].clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed)
        return float((slope.norm(dim=1) - 1).square().mean())

    def optimize(self, model: Any, batch: Any, optimizers: Any, watch: Any, backward: Any) -> None:
        for turn, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            loss = -self.critic(self.maker(batch[1])).mean() if turn else self.of_critic(*batch)
            watch.loss(loss)
            backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr, betas=(0.5, 0.9)) for one in (self.critic, self.maker)]


class SpreadAsItIs(Case):
    """An actor whose spread of actions is a weight itself: as it learns the spread falls below nought."""

    # github.com/leggedrobotics/rsl_rl/issues/33, github.com/unitreerobotics/unitree_rl_mjlab/pull/8
    kinds = ("undefined-operation",)
    places = ("log", "std")
    good = 0.6
    least = -10.0
    cure = settings(least=0.05)
    cured_by = "positive|softplus|exp"
    lr = 1e-2
    steps = 200
    batch_size = 64

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.ELU(), nn.Linear(32, 2))
        self.std = nn.Parameter(torch.full((2,), 0.8))

    def data(self) -> dict[str, Tensor]:
        random = noise(932)
        state = torch.randn(1280, 4, generator=random)
        return {
            "obs": state,
            "goal": state[:, :2] - 0.5 * state[:, 2:],
            "noise": torch.randn(1280, 2, generator=random),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mean, std = self.actor(batch["obs"]), self.std.clamp(min=self.least)
        action = (mean + std * batch["noise"]).detach()
        reward = -(action - batch["goal"]).square().sum(1)
        advantage = (reward - reward.mean()) / (reward.std() + 1e-8)
        log_prob = -(action - mean).square() / (2 * std.square()) - std.log()  # fault
        return -(advantage * log_prob.sum(1)).mean()

    def score(self) -> float:
        games = self.clean()
        return float((self.actor(games["obs"]) - games["goal"]).square().mean())
