"""Reinforcement learning and learning to learn, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class GaussianPolicy(nn.Module):
    """A squashed Gaussian over actions that are scaled to the range of the environment.

    Args:
        action_scale: The largest action.
        scales_inside: Whether the change of variables takes the action before it is scaled.
    """

    def __init__(self, action_scale: float, scales_inside: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.mean, self.log_std = nn.Linear(32, 2), nn.Linear(32, 2)
        self.action_scale, self.scales_inside = action_scale, scales_inside

    def sample(self, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(state)
        normal = Normal(self.mean(hidden), self.log_std(hidden).clamp(-5, 2).exp())
        raw = normal.rsample()
        squashed = raw.tanh()
        action = self.action_scale * squashed
        inner = squashed if self.scales_inside else action
        log_prob = normal.log_prob(raw) - torch.log(1 - inner.pow(2) + 1e-6)  # fault
        return action, log_prob.sum(1, keepdim=True)


class ScaledBeforeItsLogarithm(Case):
    """Soft actor-critic with actions up to two: the logarithm of the squashing takes the action after its scaling."""

    # github.com/philtabor/Actor-Critic-Methods-Paper-To-Code/issues/7
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 1.0
    scales_inside = False
    cure = settings(scales_inside=True)
    cured_by = r"clamp|tanh|argument|negative"
    lr = 1e-2
    steps = 150

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.policy = GaussianPolicy(2.0, self.scales_inside)
        self.value = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(711)
        state, action = torch.randn(640, 6, generator=random), 4 * torch.rand(640, 2, generator=random) - 2
        return {"obs": state, "act": action, "rew": -(action - state[:, :2]).square().mean(1, keepdim=True)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        action, _ = self.policy.sample(batch["obs"])
        return (action - batch["obs"][:, :2].clamp(-2, 2)).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        of_value, of_policy = self.torch_optimizer(0), self.torch_optimizer(1)
        error = functional.mse_loss(self.value(torch.cat([batch["obs"], batch["act"]], 1)), batch["rew"])
        of_value.zero_grad()
        self.manual_backward(error)
        of_value.step()
        action, log_prob = self.policy.sample(batch["obs"])
        goal = (0.05 * log_prob - self.value(torch.cat([batch["obs"], action], 1))).mean()
        of_policy.zero_grad()
        self.manual_backward(goal)
        of_policy.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=self.lr) for part in (self.value, self.policy)]


class ClearedCopy(Case):
    """Learning to learn over tasks: the copy that adapts is cleared, and the gradients of the model never are."""

    # github.com/dragen1860/MAML-Pytorch (the field); a loop that calls zero_grad of the wrong model
    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.07
    clears_model = False
    cure = settings(clears_model=True)
    cured_by = "zero_grad"
    not_cured_by = (settings(lr=0.01),)
    batch_size = 4
    lr = 0.1
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(712)
        phase, size = torch.rand(320, 1, generator=random), 0.5 + torch.rand(320, 1, generator=random)
        place = 4 * torch.rand(320, 20, generator=random) - 2
        return {"place": place, "height": size * (place + phase).sin()}

    def adapted(self, place: Tensor, height: Tensor) -> nn.Module:
        learner = copy.deepcopy(self.net)
        learner.zero_grad()
        with torch.enable_grad():
            functional.mse_loss(learner(place), height).backward()
        with torch.no_grad():
            for weight in learner.parameters():
                weight.sub_(weight.grad if weight.grad is not None else 0, alpha=0.05)
        return learner

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        losses = []
        for place, height in zip(batch["place"][..., None], batch["height"][..., None], strict=True):
            learner = self.adapted(place[:10], height[:10])
            shift = {
                name: (new - old).detach()
                for (name, new), old in zip(learner.named_parameters(), self.net.parameters(), strict=True)
            }
            moved = {name: weight + shift[name] for name, weight in self.net.named_parameters()}
            made = torch.func.functional_call(self.net, moved, place[10:])
            losses.append(functional.mse_loss(made, height[10:]))
        return torch.stack(losses).mean()

    def score(self) -> float:
        tasks = self.clean()
        return float(self.loss({name: field[:16] for name, field in tasks.items()}))

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        if self.clears_model:
            optimizers[0].zero_grad()
        loss = self.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizers[0].step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=self.lr)


class ImaginedReturns(Case):
    """Values of imagined futures: their targets are the sum of rewards and the same network's value at the end."""

    # github.com/danijar/dreamer/issues/20
    kinds = ("moving-target",)
    good = 0.4
    has_slow_copy = False
    discount = 0.99
    cure = settings(has_slow_copy=True, discount=0.6)
    cured_by = "target network|discount|copy"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.dynamics = nn.Linear(6, 6, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.dynamics.weight, gain=1.15)
        self.critic = nn.Sequential(nn.Linear(6, 48), nn.ELU(), nn.Linear(48, 1))
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.count = 0

    def data(self) -> tuple[Tensor]:
        return (torch.randn(640, 6, generator=noise(713)),)

    def returns(self, state: Tensor, critic: nn.Module) -> tuple[Tensor, Tensor]:
        states, rewards = [state], []
        for _ in range(3):
            rewards.append(states[-1][:, :1].tanh())
            states.append(self.dynamics(states[-1]))
        total = critic(states[-1])
        for reward in reversed(rewards):
            total = reward + self.discount * total
        return states[0], total

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        with torch.no_grad():
            state, target = self.returns(batch[0], self.slow if self.has_slow_copy else self.critic)
        return functional.mse_loss(self.critic(state), target)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.count % 20 == 0:
            self.slow.load_state_dict(self.critic.state_dict())
        self.count += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.critic.parameters(), lr=self.lr)


class MomentsWithoutTheirStep(Case):
    """Values with Adam, whose moments are set to zero every 72 steps against dormant units; its step count is not."""

    # github.com/google/dormant_neurons (the field); a reset of moments that leaves the correction of their bias
    kinds = ("optimizer-state",)
    host = "plain"
    good = 0.4
    resets_step = False
    cure = settings(resets_step=True)
    cured_by = r"\bstep\b|bias correction"
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(
            nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.value, self.advantage = nn.Linear(64, 1), nn.Linear(64, 3)
        self.count = 0

    def data(self) -> dict[str, Tensor]:
        random = noise(714)
        state = torch.randn(640, 6, generator=random)
        action = torch.randint(0, 3, (640,), generator=random)
        return {"state": state, "action": action, "reward": 3 * state.gather(1, action[:, None]).squeeze(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.body(batch["state"])
        advantage = self.advantage(hidden)
        values = self.value(hidden) + advantage - advantage.mean(1, keepdim=True)
        chosen = values.gather(1, batch["action"][:, None]).squeeze(1)
        return functional.mse_loss(chosen, batch["reward"])

    def reset_moments(self, optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
            if self.resets_step:
                state["step"].zero_()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        super().optimize(model, batch, optimizers, watch, backward)
        self.count += 1
        if self.count % 72 == 0:
            self.reset_moments(optimizers[0])


class NoisyReturns(Case):
    """Policy gradients with few samples: the loss crosses zero and the norm jumps. It is right."""

    # github.com/pytorch/examples/issues/1086 (the field)
    kinds = ("unknown",)
    healthy = True
    good = -0.5
    batch_size = 8
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def data(self) -> tuple[Tensor]:
        return (torch.randn(640, 6, generator=noise(715)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        policy = Categorical(logits=self.policy(batch[0]))
        action = policy.sample()
        reward = batch[0].gather(1, action[:, None]).squeeze(1).exp()
        return -(policy.log_prob(action) * (reward - reward.mean())).mean()

    def score(self) -> float:
        (state,) = self.clean()
        chance = self.policy(state).softmax(1)
        return -float((chance * state[:, :3]).sum(1).mean())
