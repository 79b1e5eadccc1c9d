"""Agents, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class OwnSoftmax(Case):
    """A policy for three actions of a swinging arm, with a softmax that is written out.

    Report: openillumi.com, after a question on Stack Overflow. Solved by its author: the program for two actions was
    changed to three, and the exponential of large values overflows; the largest is to be subtracted.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    host = "plain"
    good = 0.5
    subtracts_largest = False
    cure = settings(subtracts_largest=True)
    cured_by = r"softmax|subtract|stable|logsumexp"
    batch_size = 32
    lr = 5e-3
    steps = 400

    def build(self) -> None:
        self.W1 = nn.Parameter(torch.randn(6, 200) / 6**0.5)
        self.W2 = nn.Parameter(torch.randn(200, 3) / 200**0.5)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19501)
        angle = 6.28 * torch.rand(1600, 2, generator=generator) - 3.14
        speed = torch.randn(1600, 2, generator=generator) * torch.tensor([6.0, 14.0])
        states = torch.cat([angle.cos(), angle.sin(), speed], 1)
        wanted = torch.where(speed[:, 0] + 2 * angle[:, 1].sin() > 1.5, 2, torch.where(speed[:, 1] < 0, 0, 1))
        return {"states": states, "wanted": wanted}

    def policy(self, states: Tensor) -> Tensor:
        logits = (states @ self.W1).relu() @ self.W2
        if self.subtracts_largest:
            logits = logits - logits.amax(1, keepdim=True)
        e = logits.exp()  # fault
        return e / e.sum(1, keepdim=True)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        chance = self.policy(batch["states"])
        drawn = torch.rand(len(chance), 1)
        action = (chance.detach().cumsum(1) < drawn).sum(1).clamp(max=2)
        reward = torch.where(action == batch["wanted"], 1.0, -1.0)
        advantage = (reward - reward.mean()) / (reward.std() + 1e-3)
        taken = chance.gather(1, action[:, None])[:, 0]
        return -((taken + 1e-8).log() * advantage).mean()

    def score(self) -> float:
        """The share of wrong actions."""
        batch = self.data()
        return float((self.policy(batch["states"]).argmax(1) != batch["wanted"]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class WeightOfTheEntropy(Case):
    """An agent whose entropy has a weight that is trained; the weight itself, not its logarithm, is the parameter.

    Report: github.com/rail-berkeley/softlearning/issues/136. Solved by the reporter: in all runs that failed the weight
    was negative at times, and the output of the policy became infinite; with its logarithm as the parameter it is not.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.2
    trains_logarithm = False
    cure = settings(trains_logarithm=True)
    cured_by = r"logarithm|\blog_alpha\b|positive|softplus|\bexp\b|clamp|bound"
    batch_size = 32
    lr = 1e-2
    steps = 500

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 4))
        self.Q = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
        self.alpha = nn.Parameter(torch.tensor(-2.0 if self.trains_logarithm else 0.15))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19502)
        return {"observations": torch.randn(1600, 3, generator=generator)}

    def weight(self) -> Tensor:
        return self.alpha.exp() if self.trains_logarithm else self.alpha

    def reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        wanted = (observations[:, :2] + 0.5 * observations[:, 2:]).tanh()
        return -0.05 * (actions - wanted).square().sum(1)

    def act(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.policy(observations).chunk(2, 1)
        chosen = torch.distributions.Normal(mean, log_scale.exp(), validate_args=False)
        raw = chosen.rsample()
        squashed = 2 * (0.6931 - raw - functional.softplus(-2 * raw))
        return raw.tanh(), (chosen.log_prob(raw) - squashed).sum(1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        observations = batch["observations"]
        actions, log_pis = self.act(observations)
        value = self.Q(torch.cat([observations, actions], 1))[:, 0]
        return (self.weight().detach() * log_pis - value).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        policy, critic, alpha = optimizers
        observations = batch["observations"]
        with torch.no_grad():
            actions, log_pis = self.act(observations)
        value = self.Q(torch.cat([observations, actions], 1))[:, 0]
        for optimizer in (critic, policy, alpha):
            if optimizer is critic:
                loss = functional.mse_loss(value, self.reward(observations, actions))
            else:
                loss = model.loss(batch) if optimizer is policy else -(self.weight() * (log_pis - 2.0)).mean()
            optimizer.zero_grad()
            watch.loss(loss)
            backward(loss)
            optimizer.step()

    def score(self) -> float:
        """The squared distance of the likeliest action from the best."""
        observations = self.data()["observations"]
        return -20 * float(self.reward(observations, self.policy(observations)[:, :2].tanh()).mean())

    def configure_optimizers(self) -> Any:
        parts = (self.policy.parameters(), self.Q.parameters(), [self.alpha])
        return [torch.optim.Adam(part, lr=self.lr) for part in parts]
