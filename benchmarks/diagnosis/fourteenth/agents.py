"""Agents and policies, after public reports."""
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


class CappedAfterTheExponential(Case):
    """A policy of tokens learns from stored answers, near a reference by a divergence that is cut off at ten.

    Report: github.com/OpenRLHF/OpenRLHF/pull/1335. Confirmed: the cut comes after the exponential of a difference of
    logarithms, which overflows; the loss is finite and its slope is zero times infinity. The difference is limited
    instead.
    """

    kinds = ("forward-overflow", "undefined-operation", "loss-without-floor")
    places = ("exp",)
    host = "plain"
    good = 0.45
    limits_first = False
    cure = settings(limits_first=True)
    cured_by = r"before|difference|limit"
    batch_size = 64
    lr = 1e-2
    steps = 400

    def build(self) -> None:
        self.tokens, self.mix = nn.Embedding(10, 24), nn.GRU(24, 48, batch_first=True)
        self.head = nn.Linear(48, 10)
        self.reference = copy.deepcopy(nn.ModuleList([self.tokens, self.mix, self.head])).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(14401)
        prompt = torch.randint(10, (1024, 6), generator=random)
        answer = torch.randint(10, (1024, 6), generator=random)
        right = torch.rand(1024, 6, generator=random) < 0.5
        answer = torch.where(right, (prompt + 1) % 10, answer)
        return {"prompt": prompt, "answer": answer}

    def log_prob(self, prompt: Tensor, answer: Tensor, own: Sequence[nn.Module]) -> Tensor:
        tokens, mix, head = own
        scores = head(mix(tokens(prompt))[0]).log_softmax(2)
        return scores.gather(2, answer[..., None])[..., 0]

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        prompt, answer = batch["prompt"], batch["answer"]
        (optimizer,) = optimizers
        optimizer.zero_grad()
        own = self.log_prob(prompt, answer, [self.tokens, self.mix, self.head])
        with torch.no_grad():
            other = self.log_prob(prompt, answer, list(self.reference))
            reward = (answer == (prompt + 1) % 10).float()
            ahead = (reward - reward.mean()) / (reward.std() + 1e-6)
        apart = other - own
        if self.limits_first:
            apart = apart.clamp(max=10.0)
        divergence = (apart.exp() - 1 - apart).clamp(-10.0, 10.0)  # fault
        loss = (0.05 * divergence - ahead * own).mean()
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def score(self) -> float:
        prompt = self.clean()["prompt"]
        found = self.head(self.mix(self.tokens(prompt))[0]).argmax(2)
        return float((found != (prompt + 1) % 10).float().mean())

    def configure_optimizers(self) -> Any:
        own = [*self.tokens.parameters(), *self.mix.parameters(), *self.head.parameters()]
        return torch.optim.Adam(own, lr=self.lr)


class RewardsAsTheyCome(Case):
    """A pendulum by an actor and a critic with a body in common; rewards fall to -16, and returns to minus hundreds.

    Report: github.com/boyu-ai/Hands-on-RL/issues/70. Confirmed by readers: without the line that brings rewards near
    one the method does not converge; the range of the returns is too large for the critic.
    """

    kinds = ("unscaled-data",)
    host = "plain"
    good = 3.0
    scales = False
    cure = settings(scales=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"reward|scale"
    batch_size = 64
    lr = 3e-3
    steps = 160

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.mean, self.value = nn.Linear(64, 1), nn.Linear(64, 1)
        self.deviation = nn.Parameter(torch.zeros(1))

    def data(self) -> tuple[Tensor]:
        return (2 * torch.rand(2048, 2, generator=noise(14402)) - 1,)

    def walk(self, start: Tensor, explores: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        angle, speed = 3.14 * start[:, 0], start[:, 1]
        seen, actions, rewards = [], [], []
        for _ in range(40):
            state = torch.stack([angle.cos(), angle.sin(), speed / 4], 1)
            action = self.mean(self.body(state))[:, 0]
            action = action + self.deviation.exp() * torch.randn_like(action) * explores
            push = 8 * action.clamp(-2, 2)
            turned = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
            rewards.append(-(turned.square() + 0.1 * speed.square() + 0.001 * push.square()))
            seen.append(state)
            actions.append(action)
            speed = (speed + 0.05 * (15 * angle.sin() + 3 * push)).clamp(-8, 8)
            angle = angle + 0.05 * speed
        last = torch.stack([angle.cos(), angle.sin(), speed / 4], 1)
        return torch.stack(seen), torch.stack(actions), torch.stack(rewards), last

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        with torch.no_grad():
            seen, action, reward, last = self.walk(batch[0], True)
            if self.scales:
                reward = (reward + 8) / 8
            after = self.value(self.body(last))[:, 0]
            returns = torch.empty_like(reward)
            for step in range(len(reward) - 1, -1, -1):
                after = reward[step] + 0.97 * after
                returns[step] = after
        for _ in range(3):
            hidden = self.body(seen)
            value, mean = self.value(hidden)[..., 0], self.mean(hidden)[..., 0]
            ahead = (returns - value).detach()
            log_prob = -((action - mean) / self.deviation.exp()).square() / 2 - self.deviation
            loss = functional.mse_loss(value, returns) - (ahead * log_prob).mean()
            optimizer.zero_grad()
            watch.loss(loss)
            backward(loss)
            optimizer.step()

    def score(self) -> float:
        return -float(self.walk(self.clean()[0], False)[2][20:].mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ValuesOfPadding(Case):
    """Values of a team from stored episodes; where one was cut off, its next state is padding with values of -1e7.

    Report: github.com/ray-project/ray/issues/4693. Found by the reporter: values of padding are left out where an
    episode ended, and are used in the targets where it was only cut off, with astronomical errors.
    """

    kinds = ("outlier-batch", "target-out-of-range")
    rows = (91, 440, 903)
    host = "plain"
    good = 0.35
    leaves_out = False
    cure = settings(leaves_out=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"mask|padd|cut off|target"
    lr = 2e-3
    steps = 500

    def build(self) -> None:
        self.agents = nn.ModuleList(nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 3)) for _ in range(2))
        self.old = copy.deepcopy(self.agents).requires_grad_(False)
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        random = noise(14403)
        state = torch.randn(1024, 4, generator=random)
        action = torch.randint(3, (1024, 2), generator=random)
        reward = state[:, 0] * (action[:, 0] - 1) + state[:, 1] * (action[:, 1] - 1)
        later = 0.7 * state + 0.3 * torch.randn(1024, 4, generator=random)
        ends = (torch.rand(1024, generator=random) < 0.2).float()
        cut = torch.zeros(1024)
        cut[[91, 440, 903]] = 1.0
        ends[[91, 440, 903]] = 0.0
        return {"state": state, "action": action, "reward": reward, "next": later, "ends": ends, "cut": cut}

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if self.taken % 50 == 0:
            self.old.load_state_dict(self.agents.state_dict())
        self.taken += 1
        with torch.no_grad():
            best = torch.stack([agent(batch["next"]).max(1).values for agent in self.old], 1)
            if not self.leaves_out:
                best = torch.where(batch["cut"][:, None] > 0, -9999999.0, best)  # fault
            aim = batch["reward"] + 0.6 * (1 - batch["ends"]) * best.sum(1)
        own = torch.stack(
            [
                agent(batch["state"]).gather(1, batch["action"][:, i : i + 1])[:, 0]
                for i, agent in enumerate(self.agents)
            ],
            1,
        )
        optimizer.zero_grad()
        loss = functional.mse_loss(own.sum(1), aim)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def score(self) -> float:
        data = self.clean()
        chosen = torch.stack([agent(data["state"]).argmax(1) for agent in self.agents], 1)
        return float((chosen != 1 + data["state"][:, :2].sign().long()).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.agents.parameters(), lr=self.lr)
