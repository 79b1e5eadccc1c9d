"""Further models: energies by sampling, waves, single bits, chance gradients, masks, slingshots, teachers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, softmax

from benchmarks.scenarios.by_step import ByStep, error
from benchmarks.scenarios.data import Batch, digits, drawn, sunspots, windows
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import LastOutput, ScenarioModule, adam, perceptron, sgd


class Trial(nn.Module):
    """The logarithm of a trial wave function, minus a square with a learned width and a correction by a network."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(0.3))
        self.correction = perceptron([1, 16, 1], nn.Tanh)

    def forward(self, places: Tensor) -> Tensor:
        """Return the logarithm at places, shape ``(samples, 1)``."""
        logarithm: Tensor = -self.width * places.square() + self.correction(places)
        return logarithm


class GroundState(ScenarioModule):
    """The energy of a particle in a well, from samples of the trial function: the local energy times the gradient."""

    needs_gradients = True

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the energy of samples, which are weighted by the trial function."""
        places = batch[0].requires_grad_()
        logarithm = self.network(places)
        slope = torch.autograd.grad(logarithm.sum(), places, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), places, create_graph=True)[0]
        local = -0.5 * (bend + slope.square()) + 0.5 * places.square() - 5
        weights = softmax(2 * logarithm + batch[1], 0)
        energy: Tensor = (weights * local).sum()
        return energy


def _wells(steps: int) -> list[Batch]:
    places = 2 * torch.randn(steps, 128, 1)
    return list(zip(places, places.square() / 8, strict=True))


@healthy("energies by sampling")
def ground_state(seed: int) -> Setup:
    """A negative energy is lowered from samples, with a noise that vanishes at the solution."""
    return Setup(GroundState(Trial(), mse_loss, adam(0.01)), _wells(300))


@exploding("energies by sampling", begins=100)
def ground_state_lost(seed: int) -> Setup:
    """From step 100 on the energy is followed upwards at a high rate, and the negative loss leaves its size."""
    schedule = lambda step: -20.0 if step >= 100 else 1.0  # noqa: E731
    return Setup(GroundState(Trial(), mse_loss, sgd(0.05), schedule), _wells(400))


class Sine(nn.Module):
    """A sine of a frequency."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sine."""
        return (self.frequency * inputs).sin()


def _picture(steps: int) -> list[Batch]:
    image = digits()[0][0].view(8, 8)
    rows = torch.randint(8, (steps, 64, 2))
    return [(place / 4.0 - 0.875, image[place[:, 0], place[:, 1]][:, None]) for place in rows]


@healthy("waves")
def picture_by_waves(seed: int) -> Setup:
    """A picture is fitted by a network of sines."""
    network = nn.Sequential(nn.Linear(2, 32), Sine(10), nn.Linear(32, 32), Sine(3), nn.Linear(32, 1))
    return Setup(ScenarioModule(network, mse_loss, adam(0.001)), _picture(300))


@exploding("waves")
def picture_by_waves_too_fast(seed: int) -> Setup:
    """The rate of the same network rises by 4 % at each step."""
    network = nn.Sequential(nn.Linear(2, 32), Sine(10), nn.Linear(32, 32), Sine(3), nn.Linear(32, 1))
    return Setup(ScenarioModule(network, mse_loss, sgd(0.01), lambda step: 1.04**step), _picture(400))


class OneBit(nn.Linear):
    """A linear layer whose weights are rounded to their sign from a step on, with straight-through gradients."""

    rounded = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer."""
        weight = self.weight
        if self.rounded:
            weight = weight + (weight.sign() * weight.abs().mean() - weight).detach()
        return nn.functional.linear(inputs, weight, self.bias)


def _round(module: ScenarioModule) -> None:
    for layer in module.network.modules():
        if isinstance(layer, OneBit):
            layer.rounded = True


@healthy("single bits")
def one_bit_from_a_step_on(seed: int) -> Setup:
    """From step 150 on each weight is a single bit, and the loss starts again from far above."""
    network = nn.Sequential(OneBit(64, 64), nn.ReLU(), OneBit(64, 64), nn.ReLU(), OneBit(64, 10))
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003), events={150: _round}), drawn(digits(), 350, 32))


@exploding("single bits", begins=150)
def one_bit_at_a_rising_rate(seed: int) -> Setup:
    """The rate of descent rises after the weights have become bits, which only their common size feels."""
    network = nn.Sequential(OneBit(64, 64), nn.ReLU(), OneBit(64, 10))
    schedule = lambda step: 1.05 ** max(step - 150, 0)  # noqa: E731
    module = ScenarioModule(network, cross_entropy, sgd(0.1, 0.9), schedule, {150: _round})
    return Setup(module, drawn(digits(), 400, 32))


class ByChance(ByStep):
    """Gradients are estimated from two losses at opposite random changes of all weights."""

    def loss(self, batch: Any) -> Tensor:
        """Return a value with the mean loss whose gradient is the estimate along a random direction."""
        changes = [torch.randn_like(p) for p in self.network.parameters()]
        parameters = dict(self.network.named_parameters())
        width = 1e-2
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                moved = {n: p + sign * width * d for (n, p), d in zip(parameters.items(), changes, strict=True)}
                outputs = torch.func.functional_call(self.network, moved, (batch[0],))
                losses.append(cross_entropy(outputs, batch[1]))
            slope = (losses[0] - losses[1]) / (2 * width)
        along = sum((p * d).sum() for p, d in zip(parameters.values(), changes, strict=True))
        assert isinstance(along, Tensor)
        return (losses[0] + losses[1]) / 2 + slope * (along - along.detach())


@healthy("gradients by chance")
def chance_gradients(seed: int) -> Setup:
    """The norm of the gradient is that of a random direction times a slope of either sign."""
    network = perceptron([64, 10])
    return Setup(ByChance(network, lambda n, b, s: cross_entropy(n(b[0]), b[1]), sgd(2e-3)), drawn(digits(), 400, 64))


@exploding("gradients by chance")
def chance_gradients_too_fast(seed: int) -> Setup:
    """The rate of the same grows by 3 % at each step, until the noise of the estimate feeds itself."""
    network = perceptron([64, 32, 10])
    module = ByChance(
        network, lambda n, b, s: cross_entropy(n(b[0]), b[1]), sgd(1e-3), schedule=lambda step: 1.03**step
    )
    return Setup(module, drawn(digits(), 400, 64))


def _mask(share: float) -> Any:
    def apply(module: ScenarioModule) -> None:
        with torch.no_grad():
            for parameter in module.network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(parameter.abs() >= parameter.abs().flatten().quantile(share))

    return apply


@healthy("masks by stages")
def weights_masked_by_stages(seed: int) -> Setup:
    """Every 30 steps a larger share of the weights is set to zero, up to 97 %, and the rest is trained further."""
    events = {30 * stage: _mask(1 - 0.6**stage) for stage in range(2, 8)}
    module = ScenarioModule(perceptron([64, 96, 96, 10]), cross_entropy, adam(0.002), events=events)
    return Setup(module, drawn(digits(), 300, 32))


@healthy("slingshots")
def slingshots_of_adam(seed: int) -> Setup:
    """Adam without an epsilon, far beyond convergence: the loss is next to zero, jumps up and falls again."""
    inputs, labels = digits()
    rows = slice(0, 128)
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, adam(0.01, betas=(0.9, 0.95), eps=1e-12))
    return Setup(module, [(inputs[rows], labels[rows])] * 600)


class Teacher(ByStep):
    """A consistency with a running average of the network joins from a step on."""

    def __init__(self, network: nn.Module, weight: float, optimizer: Any) -> None:
        super().__init__(network, error, optimizer, lambda n, b, s: cross_entropy(n(b[0]), b[1]))
        self.teacher = [copy.deepcopy(network)]
        self.weight = weight

    def loss(self, batch: Any) -> Tensor:
        """Return the error on labels, and the distance to the teacher on noisy inputs."""
        outputs = self.network(batch[0])
        with torch.no_grad():
            aims = self.teacher[0](batch[0])
            for slow, fast in zip(self.teacher[0].parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        joined = self.weight if self.at >= 100 else 0.0
        return cross_entropy(outputs, batch[1]) + joined * mse_loss(self.network(batch[0] + 0.5), aims)


@healthy("slow teachers")
def consistency_with_a_slow_teacher(seed: int) -> Setup:
    """From step 100 on the distance to a slow average of the network counts twenty times as much as the labels."""
    return Setup(Teacher(perceptron([64, 48, 10]), 20.0, adam(0.002)), drawn(digits(), 300, 32))


@healthy("targets of no mean")
def robust_loss_of_levy_flights(seed: int) -> Setup:
    """Targets of a distribution without a mean, with a loss that counts large errors linearly."""
    batches = []
    for inputs in torch.randn(400, 16, 6):
        noise = 1 / torch.randn(16, 1).square()
        batches.append((inputs, inputs[:, :1] + noise.clamp(max=1e4)))
    return Setup(ScenarioModule(perceptron([6, 16, 1]), huber_loss, adam(0.003)), batches)


@exploding("targets of no mean")
def squares_of_levy_flights(seed: int) -> Setup:
    """The same squared: a single batch throws the weights so far that they do not come back."""
    batches = []
    for inputs in torch.randn(400, 16, 6):
        noise = 1 / torch.randn(16, 1).square()
        batches.append((inputs, inputs[:, :1] + noise.clamp(max=1e5)))
    return Setup(ScenarioModule(perceptron([6, 16, 16, 1]), mse_loss, sgd(0.05)), batches)


@healthy("late transitions")
def rule_found_after_a_plateau(seed: int) -> Setup:
    """A product of signs is learned: nothing for long, and then the loss falls within a few steps."""
    batches = []
    for bits in torch.randint(2, (500, 64, 12)):
        signs = 2.0 * bits - 1
        batches.append((signs, (signs[:, :2].prod(1) > 0).long()))
    return Setup(ScenarioModule(perceptron([12, 96, 2]), cross_entropy, sgd(0.2)), batches)


@healthy("long waves")
def forecasts_of_a_cycle(seed: int) -> Setup:
    """Sunspots in the order of their years, whose activity and error rise and fall together every eleven years."""
    series = sunspots() / 50
    batches = [
        (series[start : start + 20].view(1, 20, 1), series[start + 20].view(1, 1)) for start in range(len(series) - 20)
    ]
    return Setup(ScenarioModule(LastOutput(nn.GRU(1, 16, batch_first=True), 1), mse_loss, adam(0.005)), batches)


@exploding("long waves")
def forecasts_by_descent_too_fast(seed: int) -> Setup:
    """A plain recurrent network of raw sunspots at a rate that a large year throws off."""
    network = LastOutput(nn.RNN(1, 16, batch_first=True, nonlinearity="relu"), 1)
    return Setup(ScenarioModule(network, mse_loss, sgd(2e-3)), windows(sunspots() / 10, 300, 8, 20))


@healthy("cyclical annealing")
def divergence_in_cycles(seed: int) -> Setup:
    """The weight of a penalty on the size of a code goes from 0 to 20 and starts anew every 80 steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Any:
        code = network.get_submodule("0")(batch[0])
        made = network.get_submodule("2")(code + 0.3 * torch.randn_like(code))
        weight = 20 * min((step % 80) / 40, 1.0)
        return (made - batch[0]).square().sum(1).mean() + weight * code.square().mean()

    def outcome(network: nn.Module, batch: Any, step: int) -> Any:
        return (network(batch[0]) - batch[0]).square().sum(1).mean()

    network = nn.Sequential(nn.Linear(64, 12), nn.Identity(), nn.Linear(12, 64))
    return Setup(ByStep(network, objective, adam(0.005), outcome), drawn(digits(), 400, 32))
