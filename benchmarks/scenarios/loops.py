"""Training loops of other forms: optimizers in turn, resumed runs, validation in between, sorted data, few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, softplus

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, ring, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.interventions import set_rate
from benchmarks.scenarios.module import Block, LanguageModel, LastOutput, ScenarioModule, adam, perceptron, sgd


class InTurn(ScenarioModule):
    """A critic that steps several times for each step of a generator, with an optimizer each, by hand.

    Args:
        bound: Bound of the critic's weights (Arjovsky et al. 2017), None for a critic without a bound and a logistic
            loss.
        rates: Learning rates of the critic and the generator.
        turns: Critic steps for each generator step.
    """

    def __init__(self, bound: float | None, rates: tuple[float, float], turns: int = 4) -> None:
        super().__init__(perceptron([2, 32, 32, 1]), mse_loss, sgd(0.1))
        self.generator = perceptron([4, 32, 2])
        self.bound, self.rates, self.turns = bound, rates, turns
        self.automatic_optimization = False

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the critic's loss."""
        real, made = self.network(batch[0]), self.network(self.generator(batch[1]).detach())
        if self.bound is None:
            return softplus(made).mean() + softplus(-real).mean()
        distance: Tensor = (made - real).mean()
        return distance

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Step one of the two."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        critic, generator = optimizers
        chosen = generator if batch_idx % (self.turns + 1) == self.turns else critic
        loss = self.loss(batch) if chosen is critic else -self.network(self.generator(batch[1])).mean()
        self.last_loss = self.last_damage = float(loss.detach())
        chosen.zero_grad()
        self.manual_backward(loss)
        chosen.step()
        if self.bound is not None:
            with torch.no_grad():
                for parameter in self.network.parameters():
                    parameter.clamp_(-self.bound, self.bound)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Build an optimizer for each."""
        return [
            torch.optim.RMSprop(self.network.parameters(), lr=self.rates[0]),
            torch.optim.RMSprop(self.generator.parameters(), lr=self.rates[1]),
        ]


@healthy("optimizers in turn")
def bounded_critic_in_turn(seed: int) -> Setup:
    """A critic of bounded weights steps four times for each step of the generator; its loss is about zero."""
    return Setup(InTurn(0.1, (1e-3, 1e-3)), ring(400, 64))


@healthy("optimizers in turn")
def logistic_critic_in_turn(seed: int) -> Setup:
    """A logistic critic, and a generator that sees logits in place of losses."""
    return Setup(InTurn(None, (5e-4, 2e-4), turns=1), ring(400, 64))


@exploding("optimizers in turn")
def loose_critic_in_turn(seed: int) -> Setup:
    """Weights that are bounded far out only, and a distance without a bound at a high rate."""
    return Setup(InTurn(1e3, (2e-2, 2e-2), turns=1), ring(400, 64))


class Resumed(ScenarioModule):
    """A network that was trained before; the run at hand begins with a fresh optimizer."""

    def __init__(self, batches: list[Any], steps: int, rate: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=rate)
        for batch in batches[:steps]:
            optimizer.zero_grad()
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.network.zero_grad(set_to_none=True)


@healthy("resumed")
def resumed_from_checkpoint(seed: int) -> Setup:
    """A trained network goes on with a fresh Adam at the same rate: the loss rises a little, then falls."""
    batches = drawn(digits(), 700, 32)
    module = Resumed(batches, 400, 0.003, perceptron([64, 64, 64, 10]), cross_entropy, adam(0.003))
    return Setup(module, batches[400:])


@healthy("resumed")
def resumed_on_other_data(seed: int) -> Setup:
    """A trained network goes on with half of the digits renamed, by descent with momentum."""
    batches = drawn(digits(), 600, 32)
    module = Resumed(batches, 300, 0.003, perceptron([64, 64, 10]), cross_entropy, sgd(0.02, momentum=0.9))
    return Setup(module, [(inputs, torch.where(labels < 5, 4 - labels, labels)) for inputs, labels in batches[300:]])


@exploding("resumed")
def resumed_at_the_wrong_rate(seed: int) -> Setup:
    """A trained network goes on with a momentum and a rate far too large for it."""
    batches = drawn(digits(), 500, 32)
    module = Resumed(batches, 300, 0.003, perceptron([64, 64, 64, 10]), cross_entropy, sgd(1.5, momentum=0.95))
    return Setup(module, batches[300:])


class Validated(ScenarioModule):
    """Validates every twenty batches, on a loss of another size."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Compute a loss that nothing is learned from."""
        self.network(batch[0]).square().sum()

    def val_dataloader(self) -> Any:
        """Return a few batches."""
        return torch.utils.data.DataLoader(drawn(digits(), 3, 32), batch_size=None)  # type: ignore[arg-type]


@healthy("accumulation")
def validated_and_accumulated(seed: int) -> Setup:
    """Gradients of four batches are accumulated, with validation in between."""
    module = Validated(perceptron([64, 64, 10]), cross_entropy, adam(0.003))
    options = {"accumulate_grad_batches": 4, "val_check_interval": 20, "num_sanity_val_steps": 0}
    return Setup(module, drawn(digits(), 800, 8), options)


@healthy("sorted data")
def sorted_by_digit(seed: int) -> Setup:
    """Thirty batches of each digit after one another: the loss jumps with each new digit."""
    inputs, labels = digits()
    batches = [(inputs[labels == digit][: 8 * 30], labels[labels == digit][: 8 * 30]) for digit in range(10)]
    small = [(x[i : i + 8], y[i : i + 8]) for x, y in batches for i in range(0, len(x) - 7, 8)]
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.001)), small)


@healthy("sorted data")
def seasons(seed: int) -> Setup:
    """The noise of the targets comes and goes with a period of forty steps."""
    batches = drawn(diabetes(scaled=True), 400, 16)
    noise = [1 + torch.sin(torch.tensor(0.157 * step)) for step in range(400)]
    noisy = [(x, y + 2 * size * torch.randn_like(y)) for (x, y), size in zip(batches, noise, strict=True)]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.01, momentum=0.9)), noisy)


@healthy("few steps")
def twelve_steps(seed: int) -> Setup:
    """Twelve steps of a transformer with a warm-up."""
    width = 32
    network = LanguageModel(text()[1], width, nn.Sequential(Block(width), Block(width)))
    module = ScenarioModule(network, cross_entropy, adam(0.003), lambda step: min(1.0, (step + 1) / 10))
    return Setup(module, lines(12, 8, 32))


@healthy("few steps")
def nine_steps_of_one_sample(seed: int) -> Setup:
    """Nine steps with one patient each."""
    return Setup(ScenarioModule(perceptron([10, 16, 1]), huber_loss, sgd(0.01)), drawn(diabetes(scaled=True), 9, 1))


@exploding("few steps")
def ten_steps_too_fast(seed: int) -> Setup:
    """Ten steps on measurements without scaling."""
    return Setup(ScenarioModule(perceptron([10, 16, 1]), mse_loss, sgd(1e-2)), drawn(diabetes(), 10, 8))


class Carried(ScenarioModule):
    """A recurrent network whose state is carried from batch to batch (truncated back-propagation through time)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.state: Tensor | None = None

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the next value at each time."""
        network = self.network
        assert isinstance(network, LastOutput)
        hidden, state = network.recurrent(batch[0], self.state)
        self.state = state.detach() if self.training and state.requires_grad else self.state
        return mse_loss(network.head(hidden), batch[1])


def _long_series(steps: int, length: int) -> list[Any]:
    time = torch.arange(steps * length + 1) * 0.1
    series = torch.stack([time.sin() + 0.3 * (2.7 * time + phase).sin() for phase in torch.rand(8) * 6], 0)[:, :, None]
    return [
        (series[:, i * length : (i + 1) * length], series[:, i * length + 1 : (i + 1) * length + 1])
        for i in range(steps)
    ]


@healthy("carried state")
def carried_state(seed: int) -> Setup:
    """A long series in pieces of ten, with the state carried on."""
    network = LastOutput(nn.RNN(1, 24, batch_first=True), 1)
    return Setup(Carried(network, mse_loss, adam(0.003)), _long_series(300, 10))


@exploding("carried state")
def carried_state_of_no_bound(seed: int) -> Setup:
    """The same with rectified units by descent at a rate that rises: the state grows from batch to batch."""
    network = LastOutput(nn.RNN(1, 24, batch_first=True, nonlinearity="relu"), 1)
    return Setup(Carried(network, mse_loss, sgd(0.01), lambda step: 1.03**step), _long_series(300, 10))


@exploding("sorted data", begins=120)
def sorted_by_size(seed: int) -> Setup:
    """From step 120 on the patients come in other units, and the rate is raised with them."""
    batches = drawn(diabetes(scaled=True), 240, 16)
    changed = [*batches[:120], *[(40 * x, 40 * y) for x, y in batches[120:]]]
    events = {120: lambda module: set_rate(module, 3.0)}
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.02), events=events), changed)
