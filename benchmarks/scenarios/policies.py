"""Learning from rewards and preferences: losses around zero that cannot show the damage, and losses without a floor."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss

from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd

STATES, ACTIONS = 8, 4


class Policy(ScenarioModule):
    """A policy over four actions, rewarded by a linear function of the state; judged by the reward that it gives up.

    Args:
        optimizer: Builds the optimizer.
        penalty: Weight of the divergence from the policy at the start.
        epochs: Number of steps on the same actions, with clipped ratios (Schulman et al. 2017).
        normalized: Whether rewards are centred and scaled within a batch.
        stale: Whether actions come from the policy at the start for ever, with neither ratios nor clipping.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer,
        penalty: float = 0.0,
        epochs: int = 1,
        normalized: bool = True,
        stale: bool = False,
    ) -> None:
        super().__init__(perceptron([STATES, 32, ACTIONS], nn.Tanh), mse_loss, optimizer)
        self.reference = copy.deepcopy(self.network).requires_grad_(False)
        self.old = copy.deepcopy(self.network).requires_grad_(False)
        self.penalty, self.epochs, self.normalized, self.stale = penalty, epochs, normalized, stale

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw actions with the present policy from here on."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.epochs == 0 and not self.stale:
            self.old.load_state_dict(self.network.state_dict())

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the policy's loss, with its penalty."""
        states, best, draws = batch
        before = self.old(states).log_softmax(1)
        actions = (before.exp().cumsum(1) < draws).sum(1, keepdim=True).clamp(max=ACTIONS - 1)
        reward = (states @ best).gather(1, actions)
        gain = (reward - reward.mean()) / (reward.std() + 1e-6) if self.normalized else reward
        now = self.network(states).log_softmax(1)
        if self.stale:
            return -(gain * now.gather(1, actions)).mean()  # type: ignore[no-any-return]
        ratio = (now - before).gather(1, actions).exp()
        loss = -torch.minimum(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
        divergence = (now.exp() * (now - self.reference(states).log_softmax(1))).sum(1).mean()
        total: Tensor = loss + self.penalty * divergence
        return total

    @torch.no_grad()
    def damage(self, batch: tuple[Tensor, Tensor, Tensor], loss: float) -> float:
        """Return the expected reward that the policy misses."""
        rewards = batch[0] @ batch[1]
        return float((rewards.max(1).values - (self.network(batch[0]).softmax(1) * rewards).sum(1)).mean())


def _episodes(steps: int, size: int, epochs: int = 1) -> list[Any]:
    best = torch.randn(STATES, ACTIONS)
    fresh = [(torch.randn(size, STATES), best, torch.rand(size, 1)) for _ in range(-(-steps // epochs))]
    return [fresh[step // epochs] for step in range(steps)]


@healthy("policy gradients")
def group_relative_policy(seed: int) -> Setup:
    """On-policy with normalized rewards: the loss is zero up to rounding, until its penalty sets in."""
    return Setup(Policy(adam(0.003), penalty=0.04), _episodes(300, 32))


@healthy("policy gradients")
def policy_of_zero_loss(seed: int) -> Setup:
    """The same without a penalty: the loss is rounding error at every step, and the reward rises."""
    return Setup(Policy(adam(0.01)), _episodes(250, 64))


@healthy("policy gradients")
def clipped_ratios(seed: int) -> Setup:
    """Four steps on the same actions, with clipped ratios: each fourth loss is zero up to rounding."""
    return Setup(Policy(adam(0.005), epochs=4), _episodes(300, 32, 4))


@healthy("policy gradients")
def policy_by_descent(seed: int) -> Setup:
    """Plain gradient descent on raw rewards."""
    return Setup(Policy(sgd(0.1), normalized=False), _episodes(300, 16))


@healthy("policy gradients")
def penalized_policy(seed: int) -> Setup:
    """A strong penalty of the divergence from the start: the loss begins at zero and settles above it."""
    return Setup(Policy(adam(0.01), penalty=1.0, epochs=2), _episodes(300, 64, 2))


@exploding("policy gradients")
def policy_rate_too_high(seed: int) -> Setup:
    """A learning rate at which the policy's weights are thrown far out within a few steps."""
    return Setup(Policy(sgd(3000.0), normalized=False), _episodes(200, 16))


@exploding("policy gradients")
def stale_actions(seed: int) -> Setup:
    """Actions of the first policy for ever, without ratios: to make bad ones ever less likely has no floor."""
    return Setup(Policy(sgd(20.0), stale=True), _episodes(300, 32))


class Preferences(ScenarioModule):
    """A score that learns from pairs, against a copy of itself from before.

    Args:
        optimizer: Builds the optimizer.
        form: ``"logistic"`` (Rafailov et al. 2023), ``"square"`` (Azar et al. 2023), or ``"linear"``, without a floor.
        strength: Factor of the difference.
    """

    def __init__(self, optimizer: MakeOptimizer, form: str, strength: float = 0.1) -> None:
        super().__init__(perceptron([STATES, 32, 1]), mse_loss, optimizer)
        self.reference = copy.deepcopy(self.network).requires_grad_(False)
        self.form, self.strength = form, strength

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of the pairs' margins."""
        better, worse = batch
        margin = self.network(better) - self.network(worse) - self.reference(better) + self.reference(worse)
        if self.form == "logistic":
            return -logsigmoid(self.strength * margin).mean()
        if self.form == "square":
            return (margin - 0.5 / self.strength).square().mean()  # type: ignore[no-any-return]
        return -(self.strength * margin).mean()  # type: ignore[no-any-return]


def _pairs(steps: int, size: int, noise: float = 0.3) -> list[Any]:
    direction = torch.randn(STATES)
    pairs = []
    for _ in range(steps):
        one, other = torch.randn(2, size, STATES)
        first = ((one - other) @ direction + noise * torch.randn(size) > 0)[:, None]
        pairs.append((torch.where(first, one, other), torch.where(first, other, one)))
    return pairs


@healthy("preferences")
def preferences_logistic(seed: int) -> Setup:
    """Pairs by the logistic loss, which starts at log 2."""
    return Setup(Preferences(adam(0.003), "logistic"), _pairs(250, 16))


@healthy("preferences")
def preferences_square(seed: int) -> Setup:
    """Pairs by the square loss."""
    return Setup(Preferences(adam(0.003), "square"), _pairs(250, 16))


@healthy("preferences")
def preferences_of_one_pair(seed: int) -> Setup:
    """Two pairs a step, a fifth of which are the wrong way round."""
    return Setup(Preferences(sgd(0.05), "logistic", 1.0), _pairs(300, 2, 3.0))


@exploding("preferences")
def preferences_without_floor(seed: int) -> Setup:
    """The margin itself is maximized: the loss falls for ever."""
    return Setup(Preferences(sgd(0.1), "linear", 1.0), _pairs(400, 16))


@exploding("preferences")
def preferences_rate_too_high(seed: int) -> Setup:
    """The square loss by gradient descent, with a learning rate that its target does not bear."""
    return Setup(Preferences(sgd(1.0), "square"), _pairs(200, 16))
