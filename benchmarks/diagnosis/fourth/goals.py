"""Objectives without a floor, and targets that move with the model, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class DivergenceWithAWrongSign(Case):
    """A variational autoencoder whose divergence is subtracted: the codes move away from the prior for ever."""

    kinds = ("loss-without-floor",)
    good = 0.5
    sign = -1.0
    cure = settings(sign=1.0)
    cured_by = "sign|bound|clamp"
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.encode, self.mean, self.log_variance = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decode = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def data(self) -> tuple[Tensor]:
        random = noise(431)
        return (torch.randn(512, 3, generator=random) @ torch.randn(3, 16, generator=random) / 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden = self.encode(batch[0]).relu()
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-6, 6)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return functional.mse_loss(self.decode(code), batch[0]) + 0.1 * self.sign * divergence

    def score(self) -> float:
        (inputs,) = self.clean()
        return float(functional.mse_loss(self.decode(self.mean(self.encode(inputs).relu())), inputs))


class TripletWithoutMargin(GradientDescent, Case):
    """A triplet loss without its hinge: the difference of distances falls for ever."""

    kinds = ("loss-without-floor",)
    good = 0.3
    has_hinge = False
    cure = settings(has_hinge=True)
    cured_by = "bound|clamp|term"
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 8))

    def data(self) -> dict[str, Tensor]:
        random = noise(432)
        anchor = torch.randn(640, 12, generator=random)
        return {
            "anchor": anchor,
            "positive": anchor + 0.3 * torch.randn(640, 12, generator=random),
            "negative": torch.randn(640, 12, generator=random),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        anchor, positive, negative = (self.net(batch[name]) for name in ("anchor", "positive", "negative"))
        difference = (anchor - positive).square().sum(1) - (anchor - negative).square().sum(1)
        return ((difference + 0.2).relu() if self.has_hinge else difference).mean()

    def score(self) -> float:
        batch = self.clean()
        anchor, positive, negative = (self.net(batch[name]) for name in ("anchor", "positive", "negative"))
        wrong = (anchor - positive).norm(dim=1) > (anchor - negative).norm(dim=1)
        return float(wrong.float().mean()) + float(anchor.norm(dim=1).mean() > 1e3)


class WeightsOfTasksLearned(Case):
    """Weights of three tasks are learned with the network, as plain factors of their losses: they fall below zero."""

    kinds = ("loss-without-floor",)
    places = ("weights", "task_weights")
    good = 0.3
    learns = True
    cure = settings(learns=False)
    cured_by = "bound|clamp|term"
    lr = 0.02
    steps = 400

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(10, 48), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(48, 1) for _ in range(3))
        self.task_weights = nn.Parameter(torch.ones(3), requires_grad=self.learns)

    def data(self) -> dict[str, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(433))
        return {"inputs": inputs, "targets": torch.stack([inputs[:, 0], inputs[:, 1].abs(), inputs[:, 2].sin()], 1)}

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.body(batch["inputs"])
        found = [functional.mse_loss(head(hidden)[:, 0], batch["targets"][:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(found)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.task_weights * self.losses(batch)).sum()

    def score(self) -> float:
        return float(self.losses(self.clean()).mean())


class LikelihoodMinimized(GradientDescent, Case):
    """The log-likelihood of a mixture is minimized, since the minus before it was forgotten."""

    kinds = ("loss-without-floor",)
    good = 3.2
    sign = 1.0
    cure = settings(sign=-1.0)
    cured_by = "sign"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.means, self.shares = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(4))

    def data(self) -> tuple[Tensor]:
        random = noise(434)
        centers = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [0.0, -2.0]])
        return (centers[torch.randint(0, 3, (640,), generator=random)] + 0.5 * torch.randn(640, 2, generator=random),)

    def likelihood(self, batch: tuple[Tensor]) -> Tensor:
        parts = torch.distributions.Normal(self.means, 0.7).log_prob(batch[0][:, None]).sum(2)
        return (parts + self.shares.log_softmax(0)).logsumexp(1).mean()

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        return self.sign * self.likelihood(batch)

    def score(self) -> float:
        return -float(self.likelihood(self.clean()))


class EntropyOutOfReach(Case):
    """Soft actor-critic on few actions whose target entropy is above the logarithm of their number."""

    kinds = ("loss-without-floor", "moving-target")
    good = 20.0
    target_entropy = 3.0
    cure = settings(target_entropy=0.5)
    cured_by = "bound|clamp|floor|huber"
    lr = 0.02
    steps = 500

    def build(self) -> None:
        self.automatic_optimization = False
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        self.critic = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(-1.0))

    def data(self) -> dict[str, Tensor]:
        random = noise(435)
        states = torch.randn(640, 4, generator=random)
        return {
            "states": states,
            "actions": torch.randint(0, 3, (640,), generator=random),
            "rewards": states[:, 0].tanh(),
            "next_states": 0.9 * states.roll(1, 1),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        critic, policy, alpha = map(self.torch_optimizer, range(3))
        share = self.policy(batch["next_states"]).softmax(1)
        with torch.no_grad():
            entropy = -(share * share.clamp(min=1e-8).log()).sum(1)
            value = (share * self.target_critic(batch["next_states"])).sum(1) + self.log_alpha.exp() * entropy
            target = batch["rewards"] + 0.95 * value
        error = functional.mse_loss(self.critic(batch["states"]).gather(1, batch["actions"][:, None])[:, 0], target)
        share = self.policy(batch["states"]).softmax(1)
        log_share = share.clamp(min=1e-8).log()
        gain = (share * (self.log_alpha.exp().detach() * log_share - self.critic(batch["states"]).detach())).sum(1)
        entropy = -(share * log_share).sum(1).detach()
        distance = self.log_alpha.exp() * (entropy - self.target_entropy).mean()
        for optimizer, loss, name in (
            (critic, error, "critic"),
            (policy, gain.mean(), "policy"),
            (alpha, distance, "alpha"),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(f"{name}_loss", loss)
        for old, new in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            old.data.lerp_(new.data, 0.05)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.critic.parameters(), lr=self.lr),
            torch.optim.Adam(self.policy.parameters(), lr=self.lr),
            torch.optim.Adam([self.log_alpha], lr=self.lr),
        ]

    def score(self) -> float:
        return float(self.critic(self.clean()["states"]).abs().mean())


class TargetNetworkTooFast(Case):
    """Q-learning on stored trades without an end: the target network follows by a fifth at each step."""

    kinds = ("moving-target",)
    good = 10.0
    share = 0.5
    discount = 1.15
    cure = settings(discount=0.7)
    cured_by = "slow|follows|huber|bound"
    lr = 0.01
    steps = 400

    def build(self) -> None:
        self.online = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4))
        self.delayed = copy.deepcopy(self.online).requires_grad_(False)

    def data(self) -> tuple[Tensor, ...]:
        random = noise(436)
        window = torch.randn(800, 6, generator=random)
        action = torch.randint(0, 4, (800,), generator=random)
        profit = window[:, 0] * (action - 1.5) + 0.1 * torch.randn(800, generator=random)
        return window, action, profit, torch.cat([window[:, 1:], torch.randn(800, 1, generator=random)], 1)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        window, action, profit, following = batch
        best = self.delayed(following).amax(1)
        chosen = self.online(window).gather(1, action[:, None])[:, 0]
        return functional.smooth_l1_loss(chosen, profit + self.discount * best, beta=100.0)

    def on_train_batch_end(self, *arguments: Any) -> None:
        for old, new in zip(self.delayed.parameters(), self.online.parameters(), strict=True):
            old.data.lerp_(new.data, self.share)

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.online.parameters(), lr=self.lr)

    def score(self) -> float:
        return float(self.online(self.clean()[0]).abs().mean())


class TeacherAheadOfItsStudent(GradientDescent, Case):
    """A mean teacher with a decay of 1.1 by a slip: it moves away from its student, who follows it."""

    kinds = ("moving-target",)
    places = ("teacher",)
    good = 0.7
    decay = 1.1
    cure = settings(decay=0.99)
    cured_by = "follows|slow|lerp"
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.student = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(437))
        return {"inputs": inputs, "label": inputs[:, :3].argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        answer = self.student(batch["inputs"])
        wish = self.teacher(batch["inputs"] + 0.1 * torch.randn_like(batch["inputs"]))
        return functional.cross_entropy(answer, batch["label"]) + functional.mse_loss(answer, wish)

    def on_train_batch_end(self, *arguments: Any) -> None:
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.data.mul_(self.decay).add_(new.data, alpha=1 - self.decay)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=self.lr)

    def score(self) -> float:
        batch = self.clean()
        return float(functional.cross_entropy(self.student(batch["inputs"]), batch["label"]))


class ActorAndItsCritic(Case):
    """Actor and critic with two optimizers, no target networks, and a state that the policy can push outward."""

    kinds = ("moving-target",)
    good = 20.0
    discount = 0.99
    cure = settings(discount=0.3)
    cured_by = "slow|follows|huber|bound"
    lr = 3e-3
    steps = 600

    def build(self) -> None:
        self.automatic_optimization = False
        self.actor = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
        self.q = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(438)
        obs, action = torch.randn(640, 3, generator=random), torch.randn(640, 2, generator=random)
        return {
            "obs": obs,
            "action": action,
            "reward": obs[:, :1] * action[:, :1],
            "next_obs": 1.3 * obs + 0.1 * torch.randn(640, 3, generator=random),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        actor, critic = map(self.torch_optimizer, range(2))
        with torch.no_grad():
            following = torch.cat([batch["next_obs"], self.actor(batch["next_obs"])], 1)
            target = batch["reward"] + self.discount * self.q(following)
        error = functional.mse_loss(self.q(torch.cat([batch["obs"], batch["action"]], 1)), target)
        critic.zero_grad()
        self.manual_backward(error)
        critic.step()
        value = self.q(torch.cat([batch["obs"], self.actor(batch["obs"])], 1)).mean()
        actor.zero_grad()
        self.manual_backward(-value)
        actor.step()
        self.log_dict({"critic_loss": error, "value": value})

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=self.lr),
            torch.optim.Adam(self.q.parameters(), lr=self.lr),
        ]

    def score(self) -> float:
        batch = self.clean()
        return float(self.q(torch.cat([batch["obs"], batch["action"]], 1)).abs().mean())
