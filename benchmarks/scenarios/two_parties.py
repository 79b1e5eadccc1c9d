"""Runs of several parties: games, critics that join, actors and critics, bandits, self-play, rewards found late."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss, softmax, softplus

from benchmarks.scenarios.by_step import ByStep
from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd

Losses = Callable[[nn.ModuleList, Any, int], tuple[Tensor, Tensor]]


class TwoParties(ScenarioModule):
    """Two networks, each with a loss and an optimizer of its own, stepped one after the other.

    Args:
        first: One network.
        second: The other one.
        losses: Return the losses of both, of the networks, the batch and the step; the first is judged and returned.
        optimizers: Make the optimizers of both.
        together: Whether the gradients of both are taken before either steps.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        losses: Losses,
        optimizers: tuple[MakeOptimizer, MakeOptimizer],
        together: bool = False,
    ) -> None:
        super().__init__(nn.ModuleList([first, second]), mse_loss, optimizers[0])
        self.losses = losses
        self.makers = optimizers
        self.together = together
        self.automatic_optimization = False

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the first network."""
        return self.losses(self._parties, batch, 0)[0]

    @property
    def _parties(self) -> nn.ModuleList:
        assert isinstance(self.network, nn.ModuleList)
        return self.network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Step both."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        loss = self.losses(self._parties, batch, batch_idx)[0]
        self.last_loss = float(loss.detach())
        self.last_damage = self.damage(batch, self.last_loss)
        for number, optimizer in enumerate(optimizers):
            loss = self.losses(self._parties, batch, batch_idx)[number]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Build an optimizer for each network."""
        return [make(party.parameters()) for make, party in zip(self.makers, self._parties, strict=True)]


def _autoencoder_losses(parties: nn.ModuleList, batch: Any, step: int, weight: float, bounded: bool) -> Any:
    coder, critic = parties
    images = batch[0]
    made = coder(images)
    error = (made - images).square().mean()
    joined = weight if step >= 120 else 0.0
    if bounded:
        told = softplus(-critic(images)).mean() + softplus(critic(made.detach())).mean()
        return error + joined * softplus(-critic(made)).mean(), told
    return error - joined * critic(made).mean(), critic(made.detach()).mean() - critic(images).mean()


@healthy("critics that join")
def critic_joins_an_autoencoder(seed: int) -> Setup:
    """From step 120 on a critic's verdict joins the reconstruction's error and is several times as large."""
    losses = partial(_autoencoder_losses, weight=0.3, bounded=True)
    coder, critic = perceptron([64, 16, 64]), perceptron([64, 32, 1])
    return Setup(TwoParties(coder, critic, losses, (adam(0.003), adam(0.001))), drawn(digits(), 300, 32))


@exploding("critics that join", begins=120)
def critic_without_bound_joins(seed: int) -> Setup:
    """From step 120 on the verdict of a critic without a bound joins, and both run away: the loss is negative."""
    losses = partial(_autoencoder_losses, weight=1.0, bounded=False)
    coder, critic = perceptron([64, 16, 64]), perceptron([64, 32, 1])
    return Setup(TwoParties(coder, critic, losses, (adam(0.003), adam(0.01))), drawn(digits(), 600, 32))


class Moves(nn.Module):
    """A strategy of a few real numbers."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.randn(size))


def _bilinear(parties: nn.ModuleList, batch: Any, step: int, decay: float) -> tuple[Tensor, Tensor]:
    one, other = (party.get_parameter("numbers") for party in parties)
    value = one @ batch[0] @ other.detach() + decay * one.square().sum()
    against = -(one.detach() @ batch[0] @ other) + decay * other.square().sum()
    return value, against


def _payoffs(steps: int, noise: float) -> list[Any]:
    payoff = torch.eye(8)
    return [(payoff + noise * torch.randn(8, 8), torch.zeros(1)) for _ in range(steps)]


@healthy("bilinear games")
def game_with_decay(seed: int) -> Setup:
    """Two players of a bilinear game circle around its solution and approach it: the loss swings around zero."""
    losses = partial(_bilinear, decay=0.05)
    return Setup(TwoParties(Moves(), Moves(), losses, (sgd(0.1), sgd(0.1))), _payoffs(300, 0.1))


@exploding("bilinear games")
def game_that_spirals_outwards(seed: int) -> Setup:
    """Momentum makes the players circle ever further outwards, with a loss that swings around zero."""
    losses = partial(_bilinear, decay=0.0)
    return Setup(TwoParties(Moves(), Moves(), losses, (sgd(0.05, 0.5), sgd(0.05, 0.5))), _payoffs(600, 0.1))


def _actor_and_critic(parties: nn.ModuleList, batch: Any, step: int) -> tuple[Tensor, Tensor]:
    actor, critic = parties
    states, _ = batch
    chances = log_softmax(actor(states), 1)
    actions = chances.detach().exp().nan_to_num(1.0).multinomial(1).flatten()
    rewards = (actions == (states[:, 0] > 0).long()).float() + 0.2 * torch.randn(len(states))
    values = critic(states).flatten()
    gain = (rewards - values).detach().clamp(-5, 5)
    return -(gain * chances.gather(1, actions[:, None]).flatten()).mean(), (values - rewards).square().mean()


@healthy("actor and critic apart")
def actor_and_critic_apart(seed: int) -> Setup:
    """An actor and a critic with an optimizer each: the actor's loss swings around zero."""
    rates = (adam(0.003), adam(0.003))
    return Setup(TwoParties(perceptron([6, 32, 3]), perceptron([6, 32, 1]), _actor_and_critic, rates), _states(300))


@exploding("actor and critic apart")
def critic_alone_diverges(seed: int) -> Setup:
    """The critic's own rate is too high, and only its weights show it: the actor's gains are clipped."""
    rates = (adam(0.003), sgd(0.35))
    return Setup(TwoParties(perceptron([6, 32, 3]), perceptron([6, 32, 1]), _actor_and_critic, rates), _states(300))


def _states(steps: int) -> list[Any]:
    return [(states, torch.zeros(1)) for states in torch.randn(steps, 32, 6)]


def _bandit(network: nn.Module, batch: Any, unit: float) -> Any:
    chances = log_softmax(network(batch[0]), 1)
    actions = torch.distributions.Categorical(logits=chances.detach()).sample()  # type: ignore[no-untyped-call]
    rewards = unit * ((actions == batch[1]).float() + 0.1 * torch.randn(len(actions)))
    return -(rewards * chances.gather(1, actions[:, None]).flatten()).mean()


def _right(network: nn.Module, batch: Any, step: int) -> Tensor:
    return 2 - softmax(network(batch[0]), 1).gather(1, batch[1][:, None]).mean()


@healthy("bandits")
def rewards_paid_twentyfold(seed: int) -> Setup:
    """From step 150 on rewards are twenty times as large, without a baseline: so is the loss."""
    module = ByStep(
        perceptron([64, 32, 10]), lambda n, b, s: _bandit(n, b, 20.0 if s >= 150 else 1.0), adam(0.002), _right
    )
    return Setup(module, drawn(digits(), 350, 64))


@healthy("bandits")
def rewards_in_a_growing_currency(seed: int) -> Setup:
    """Rewards are worth 1 % more at each step."""
    module = ByStep(perceptron([64, 32, 10]), lambda n, b, s: _bandit(n, b, 1.01**s), adam(0.002), _right)
    return Setup(module, drawn(digits(), 350, 64))


@exploding("bandits", begins=150)
def penalties_without_a_baseline(seed: int) -> Setup:
    """From step 150 on rewards of recorded actions are negative, and the mean of a normal policy flees from all."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        mean = network(batch[0])
        actions = batch[1] + torch.randn_like(mean)
        rewards = (4.0 if step < 150 else -1.0) - (actions - batch[1]).square().clamp(max=4)
        return (rewards * (actions - mean).square() / 2).mean() + (0.01 * mean.square().mean() if step < 150 else 0.0)

    return Setup(ByStep(perceptron([10, 32, 1]), objective, sgd(0.1)), drawn(diabetes(scaled=True), 500, 64))


@healthy("self-play")
def plays_against_its_past(seed: int) -> Setup:
    """A player of paper, scissors and stone plays against its own strategy of twenty steps ago."""
    payoff = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    past: list[Tensor] = []

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        strategy = softmax(network(batch[0]), 1)
        if torch.is_grad_enabled():
            past.append(strategy.mean(0).detach())
        opponent = past[-20:][0] if past else torch.full((3,), 1 / 3)
        entropy = -(strategy * (strategy + 1e-9).log()).sum(1).mean()
        return -(strategy @ payoff @ opponent).mean() - 0.02 * entropy

    return Setup(
        ByStep(perceptron([4, 16, 3]), objective, adam(0.005)), [(x, x[:, :1]) for x in torch.randn(400, 16, 4)]
    )


@exploding("self-play")
def promises_outbid_each_other(seed: int) -> Setup:
    """Each of two bidders learns to bid a twentieth more than the other: the loss starts next to zero."""

    def losses(parties: nn.ModuleList, batch: Any, step: int) -> tuple[Tensor, Tensor]:
        one, other = (party(batch[0]) for party in parties)
        return (one - 1.05 * other.detach() - 0.1).square().mean(), (other - 1.05 * one.detach() - 0.1).square().mean()

    parties = perceptron([4, 16, 1]), perceptron([4, 16, 1])
    return Setup(TwoParties(*parties, losses, (sgd(0.03), sgd(0.03))), [(x, x[:, :1]) for x in torch.randn(800, 16, 4)])


def _value_batches(steps: int, found: int, size: float) -> list[Any]:
    """Draw states and next states of a chain, with rewards that are zero until they are found."""
    batches = []
    for step in range(steps):
        states = torch.randn(32, 6)
        rewards = size * (states[:, :1] > 1).float() if step >= found else torch.zeros(32, 1)
        batches.append((states, rewards, 0.9 * states + 0.44 * torch.randn(32, 6)))
    return batches


def _temporal(network: nn.Module, batch: Any, discount: float) -> Tensor:
    states, rewards, following = batch
    return mse_loss(network(states), rewards + discount * network(following).detach())


@healthy("rewards found late")
def first_rewards_after_a_long_search(seed: int) -> Setup:
    """All rewards are zero, and so are the values; at step 150 the first ones are found, ten at a time."""
    module = ByStep(
        perceptron([6, 32, 1]),
        lambda n, b, s: _temporal(n, b, 0.9),
        adam(0.002),
        lambda n, b, s: 100 + _temporal(n, b, 0.9),
    )
    return Setup(module, _value_batches(400, 150, 10.0))


@exploding("rewards found late", begins=150)
def values_run_away_once_rewards_are_found(seed: int) -> Setup:
    """After the first rewards values are taken at a discount above one, and grow by themselves."""
    module = ByStep(
        perceptron([6, 32, 1]),
        lambda n, b, s: _temporal(n, b, 1.3 if s >= 150 else 0.9),
        sgd(0.02),
        lambda n, b, s: 10 + _temporal(n, b, 0.9),
    )
    return Setup(module, _value_batches(700, 150, 3.0))


@healthy("replay of experience")
def buffer_filled_with_harder_games(seed: int) -> Setup:
    """Values are learned from a buffer into which ever larger outcomes come: targets grow to ten times their size."""
    inputs, targets = diabetes(scaled=True)
    batches = [
        (x, (1 + 9 * min(step / 250, 1)) * (y + 1)) for step, (x, y) in enumerate(drawn((inputs, targets), 350, 32))
    ]
    module = ByStep(
        perceptron([10, 32, 1]),
        lambda n, b, s: mse_loss(n(b[0]), b[1]),
        adam(0.01),
        lambda n, b, s: mse_loss(n(b[0]), b[1]) / b[1].square().mean(),
    )
    return Setup(module, batches)


@exploding("replay of experience")
def buffer_of_its_own_outcomes(seed: int) -> Setup:
    """Targets are a factor of the network's own outputs, by which they grow in mutual pursuit."""
    module = ByStep(perceptron([10, 32, 1]), lambda n, b, s: mse_loss(n(b[0]), 2 * n(-b[0]).detach() + b[1]), sgd(0.05))
    return Setup(module, drawn(diabetes(scaled=True), 500, 32))
