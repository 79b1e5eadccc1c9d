"""Adversaries in several forms, and networks that are trained against a part of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

from benchmarks.scenarios.data import digits, drawn, ring
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected, ramp, with_steps


class Opponents(ScenarioModule):
    """A generator and a critic with an optimizer each, by hand, with any pair of losses.

    Args:
        critic: The critic's loss of the scores of real and made samples.
        generator: The generator's loss of the scores of made ones.
        rates: Learning rates.
        slope: Weight of the penalty on the critic's squared slope at real samples (Mescheder et al. 2018).
    """

    needs_gradients = True

    def __init__(
        self,
        critic: Callable[[Tensor, Tensor], Tensor],
        generator: Callable[[Tensor], Tensor],
        rates: tuple[float, float],
        slope: float = 0.0,
        make: Any = torch.optim.Adam,
    ) -> None:
        super().__init__(perceptron([2, 32, 32, 1]), mse_loss, sgd(0.1))
        self.generator = perceptron([4, 32, 2])
        self.critic_loss, self.generator_loss, self.rates, self.slope = critic, generator, rates, slope
        self.make = make
        self.automatic_optimization = False

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the critic's loss."""
        real = batch[0].clone().requires_grad_()
        score = self.network(real)
        loss = self.critic_loss(score, self.network(self.generator(batch[1]).detach()))
        if self.slope:
            slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
            loss = loss + self.slope * slope.square().sum(1).mean()
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Step the critic, then the generator; the loss of the step is the sum of both."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        critic, generator = optimizers
        loss = self.loss(batch)
        critic.zero_grad()
        self.manual_backward(loss)
        critic.step()
        made = self.generator_loss(self.network(self.generator(batch[1])))
        generator.zero_grad()
        self.manual_backward(made)
        generator.step()
        self.last_loss = self.last_damage = float(loss.detach())
        return loss.detach() + made.detach()

    def configure_optimizers(self) -> Any:
        """Build an optimizer for each."""
        return [
            self.make(self.network.parameters(), lr=self.rates[0]),
            self.make(self.generator.parameters(), lr=self.rates[1]),
        ]


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Return the hinge loss of a critic (Lim and Ye 2017)."""
    return (1 - real).relu().mean() + (1 + made).relu().mean()


def logistic(real: Tensor, made: Tensor) -> Tensor:
    """Return the logistic loss of a critic."""
    return softplus(made).mean() + softplus(-real).mean()


def distance(real: Tensor, made: Tensor) -> Tensor:
    """Return a difference of mean scores, without a bound."""
    return made.mean() - real.mean()


@healthy("forms of adversaries")
def hinge_adversaries(seed: int) -> Setup:
    """Hinge losses, by Adam."""
    return Setup(Opponents(hinge, lambda made: -made.mean(), (4e-4, 1e-4)), ring(350, 64))


@healthy("forms of adversaries")
def least_squares_adversaries(seed: int) -> Setup:
    """Squared distances of scores from labels (Mao et al. 2017)."""

    def critic(real: Tensor, made: Tensor) -> Tensor:
        return (real - 1).square().mean() + made.square().mean()

    return Setup(Opponents(critic, lambda made: (made - 1).square().mean(), (5e-4, 5e-4)), ring(350, 64))


@healthy("forms of adversaries")
def penalized_adversaries(seed: int) -> Setup:
    """Logistic losses and a penalty on the critic's slope."""
    return Setup(Opponents(logistic, lambda made: softplus(-made).mean(), (1e-3, 1e-3), slope=1.0), ring(350, 64))


@healthy("forms of adversaries")
def distance_with_penalty(seed: int) -> Setup:
    """A difference of scores without a bound, which a penalty on the slope keeps: a loss around zero."""
    return Setup(Opponents(distance, lambda made: -made.mean(), (5e-4, 2e-4), slope=2.0), ring(350, 64))


@exploding("forms of adversaries")
def distance_by_root_mean_square(seed: int) -> Setup:
    """A difference of scores, neither bounded nor penalized."""
    return Setup(Opponents(distance, lambda made: -made.mean(), (1e-2, 1e-3), make=torch.optim.RMSprop), ring(350, 64))


@exploding("forms of adversaries")
def penalty_too_strong(seed: int) -> Setup:
    """A penalty on the slope that gradient descent overshoots."""
    module = Opponents(logistic, lambda made: softplus(-made).mean(), (0.3, 0.1), slope=30.0, make=torch.optim.SGD)
    return Setup(module, ring(250, 64))


class Reversed(torch.autograd.Function):
    """Passes values on, and gradients with the opposite sign (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        """Pass on."""
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        """Turn around."""
        return -context.strength * gradients[0], None


def _against_domains(network: nn.Module, batch: Any) -> Tensor:
    inputs, labels, strength = batch
    inputs = torch.cat([inputs, 1 - inputs])
    features = network.get_submodule("0")(inputs)
    domains = network.get_submodule("2")(Reversed.apply(features, strength))  # type: ignore[no-untyped-call]
    wanted = torch.arange(2).repeat_interleave(len(labels))
    return cross_entropy(network.get_submodule("1")(features[: len(labels)]), labels) + cross_entropy(domains, wanted)


def _with_domains() -> nn.Sequential:
    return nn.Sequential(perceptron([64, 64, 32]), nn.Linear(32, 10), perceptron([32, 32, 2]))


@healthy("forms of adversaries")
def domains_told_apart(seed: int) -> Setup:
    """Features that a second head shall not tell domains by; its strength is ramped."""
    batches = with_steps(drawn(digits(), 300, 24), ramp(0, 150, 0.0, 0.5))
    return Setup(Objected(_with_domains(), _against_domains, adam(0.002)), batches)


@exploding("forms of adversaries")
def domains_told_apart_too_well(seed: int) -> Setup:
    """The same with a strength that grows by three percent a step."""
    batches = with_steps(drawn(digits(), 400, 24), lambda step: 0.5 * 1.03**step)
    return Setup(Objected(_with_domains(), _against_domains, sgd(0.05)), batches)
