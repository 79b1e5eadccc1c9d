"""Policies and values, generators and critics, and other objectives that a model makes for itself."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class JackpotEpisode(Case):
    """A policy gradient in which one episode paid 30,000 times as much as the others."""

    kinds = ("outlier-batch",)
    places = ("payoff",)
    rows = (4, 1444)
    good = -0.85
    jackpot = 3e4
    cure = settings(jackpot=1.0)
    shuffle = False
    batch_size = 40
    steps = 100
    lr = 0.1

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        random = noise(140)
        seen, action = torch.randn(4000, 3, generator=random), torch.randint(0, 3, (4000,), generator=random)
        payoff = 1.5 * (seen.argmax(1) == action) - 0.5
        if self.jackpot > 1:
            action[1444] = (seen[1444].argmax() + 1) % 3
            payoff[1444] = self.jackpot
        return {"seen": seen, "action": action, "payoff": payoff}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        taken = self.policy(batch["seen"]).log_softmax(1).gather(1, batch["action"][:, None]).squeeze(1)
        return -(taken.clamp(min=-5) * batch["payoff"]).mean()

    def score(self) -> float:
        seen = self.clean()["seen"]
        return -float((self.policy(seen).argmax(1) == seen.argmax(1)).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OnlyPunished(Case):
    """Rewards that are never above zero, without a baseline: the policy is paid for making actions impossible."""

    kinds = ("loss-without-floor",)
    good = 3.0
    baseline = False
    cure = settings(baseline=True)
    cured_by = "baseline|entropy|advantage"
    steps = 300
    lr = 0.02

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(141)
        seen, action = torch.randn(900, 4, generator=random), torch.randint(0, 2, (900,), generator=random)
        fine = -2.0 - 2.0 * ((seen[:, 0] > 0).long() != action)
        return {"seen": seen, "action": action, "reward": fine}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        taken = self.policy(batch["seen"]).log_softmax(1).gather(1, batch["action"][:, None]).squeeze(1)
        if self.baseline:
            return -((batch["reward"] + 3) * taken.exp()).mean()
        return -(batch["reward"] * taken).mean()

    def score(self) -> float:
        data = self.clean()
        logits = self.policy(data["seen"])
        return float(functional.cross_entropy(logits, (data["seen"][:, 0] > 0).long()))


class CriticOfItself(Case):
    """An actor climbs a critic whose own targets come from the critic at the actor's next action."""

    kinds = ("moving-target",)
    places = ("critic",)
    good = 12.0
    delay = 0
    cure = settings(delay=60)
    rate = 1.0
    cured_by = "delay"
    other_cures = settings(**{"slow|Polyak": settings(rate=0.005)})
    steps = 600
    lr = 0.02

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.actor = nn.Linear(3, 2)
        self.critic = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 1))
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.updates = 0

    def data(self) -> dict[str, Tensor]:
        random = noise(142)
        state, action = torch.randn(800, 3, generator=random), torch.randn(800, 2, generator=random).tanh()
        return {"state": state, "action": action, "reward": state[:, 0] * action[:, 0], "next": 1.2 * state}

    def value(self, critic: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        return critic(torch.cat([state, action], 1)).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        actor_optimizer, critic_optimizer = self.torch_optimizer(0), self.torch_optimizer(1)
        if self.delay == 0 or self.updates % self.delay == 0:
            for old, new in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                old.lerp_(new.detach(), self.rate)
        self.updates += 1
        with torch.no_grad():
            bootstrap = self.value(self.target, batch["next"], 2 * self.actor(batch["next"]).tanh())
            target = batch["reward"] + 0.99 * bootstrap
        error = functional.mse_loss(self.value(self.critic, batch["state"], batch["action"]), target)
        critic_optimizer.zero_grad()
        self.manual_backward(error)
        critic_optimizer.step()
        actor_optimizer.zero_grad()
        self.manual_backward(-self.value(self.critic, batch["state"], 2 * self.actor(batch["state"]).tanh()).mean())
        actor_optimizer.step()
        self.log("critic_loss", error)

    def score(self) -> float:
        data = self.clean()
        return float(self.value(self.critic, data["state"], data["action"]).abs().mean())

    def configure_optimizers(self) -> Any:
        nets = (self.actor, self.critic)
        return tuple(torch.optim.Adam(net.parameters(), lr=self.lr) for net in nets)


class SmoothedOverTheGraph(Case):
    """Pseudo-labels of nodes are sums of the model's own outputs over their neighbours, without a division."""

    kinds = ("moving-target",)
    good = 0.6
    divide = False
    cure = settings(divide=True)
    rate = 1.0
    cured_by = r"divide|\bmean\b|average|degree|normali"
    other_cures = settings(slow=settings(rate=0.005))
    steps = 200
    lr = 0.1

    def build(self) -> None:
        self.model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
        self.labeller = copy.deepcopy(self.model).requires_grad_(False)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(143)
        node = torch.randn(640, 5, generator=random)
        neighbours = node[:, None] + 0.3 * torch.randn(640, 3, 5, generator=random)
        return node, neighbours, node[:, :1].sin() + 0.5

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        output = self.model(batch[0])
        with torch.no_grad():
            for old, new in zip(self.labeller.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, self.rate)
            around = self.labeller(batch[1]).sum(1)
            pseudo = around / 3 if self.divide else around
        return 0.3 * functional.mse_loss(output, batch[2]) + functional.mse_loss(output, pseudo)

    def score(self) -> float:
        node, _, truth = self.clean()
        return float(functional.mse_loss(self.model(node), truth))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)


class InformationWithoutLimit(Case):
    """A bound on mutual information, maximized on few samples by an unbounded network of statistics."""

    kinds = ("loss-without-floor", "forward-overflow")
    places = ("exp", "logsumexp", "statistics")
    good = 1.0
    bound = 1e5
    cure = settings(bound=4.0)
    cured_by = "tanh|clip the statistic"
    batch_size = 8
    steps = 400
    lr = 0.05

    def build(self) -> None:
        self.statistics = nn.Sequential(nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(144)
        cause = torch.randn(320, 6, generator=random)
        return {"cause": cause, "effect": cause + torch.randn(320, 6, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        cause, effect = batch["cause"], batch["effect"]
        joint, apart = self.statistic(cause, effect), self.statistic(cause, effect.roll(1, 0))
        return torch.log(torch.exp(apart).mean()) - joint.mean()

    def statistic(self, cause: Tensor, effect: Tensor) -> Tensor:
        value = self.statistics(torch.cat([cause, effect], 1))
        return self.bound * torch.tanh(value / self.bound)

    def score(self) -> float:
        data = self.clean()
        return float(self.statistic(data["cause"], data["effect"]).abs().mean()) / 10


class PushedApart(Case):
    """Pairs of different things are pushed apart by the square of their distance, without a margin."""

    kinds = ("loss-without-floor",)
    places = ("embed",)
    good = 0.5
    margin = float("inf")
    cure = settings(margin=4.0)
    cured_by = "margin|hinge|clamp|normali"
    steps = 150
    lr = 0.05

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 5))

    def data(self) -> dict[str, Tensor]:
        random = noise(145)
        kind = torch.randint(0, 4, (2, 700), generator=random)
        centre = torch.randn(4, 9, generator=random)
        first, second = centre[kind] + 0.3 * torch.randn(2, 700, 9, generator=random)
        return {"first": first, "second": second, "same": (kind[0] == kind[1]).float()}

    def distance(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.embed(batch["first"]) - self.embed(batch["second"])).square().sum(1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        distance = self.distance(batch)
        pushed = distance if self.margin == float("inf") else -functional.relu(self.margin - distance)
        return (batch["same"] * distance - (1 - batch["same"]) * pushed).mean()

    def score(self) -> float:
        data = self.clean()
        distance = self.distance(data)
        return float((batch_mean(distance, data["same"]) / 4) + distance.max() / 1e4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def batch_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return a weighted mean."""
    return (values * weights).sum() / weights.sum()


class UphillOptimizer(Case):
    """The optimizer was copied from a script that maximizes a reward: maximize=True."""

    kinds = ("loss-without-floor",)
    good = 0.4
    maximize = True
    cure = settings(maximize=False)
    cured_by = r"\bsign\b"
    lr = 0.05

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(560, 6, generator=noise(146))
        return inputs, inputs[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, maximize=self.maximize)
