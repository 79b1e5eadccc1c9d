"""Sound, sharper images, rendered images, automata, networks of spikes, and coordinates in a hyperbolic space."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, mse_loss
from torch.optim import SGD, Adam, RMSprop

from benchmarks.scenarios.data import Batch, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.optimizing import Signed


def _tones(steps: int, size: int) -> list[Batch]:
    """Return noisy waves of 128 samples of one of eight pitches, of very different loudness."""
    pitch = torch.randint(8, (steps, size))
    time = torch.arange(128.0) / 128
    loudness = torch.randn(steps, size, 1).mul(0.7).exp()
    phase = 6.3 * torch.rand(steps, size, 1)
    waves = loudness * torch.sin(6.283 * (4.0 + 3 * pitch[..., None]) * time + phase)
    return list(zip(waves + 0.3 * torch.randn_like(waves), pitch, strict=True))


def _listener() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 128)),
        nn.Conv1d(1, 16, 9, 4),
        nn.ReLU(),
        nn.Conv1d(16, 32, 5, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(416, 8),
    )


@exploding("sound")
def pitches_warmed_up_too_shortly(seed: int) -> Setup:
    """Waves by convolutions with Nesterov's momentum, at a high rate after four steps of warm-up."""
    optimizer = partial(SGD, lr=0.6, momentum=0.9, nesterov=True)
    module = ScenarioModule(_listener(), cross_entropy, optimizer, lambda step: min(1.0, (step + 1) / 4))
    return Setup(module, _tones(250, 16))


class Spectra(ScenarioModule):
    """Restores waves; the loss compares logarithms of spectra in two resolutions."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum over resolutions."""
        waves, _ = batch
        made = self.network(waves + 0.3 * torch.randn_like(waves))
        total = torch.zeros(())
        for length in (32, 64):
            pieces, targets = (one.unfold(1, length, length // 2) for one in (made, waves))
            one, other = (torch.fft.rfft(piece).abs() for piece in (pieces, targets))
            total = total + (one - other).abs().mean() + ((one + 1e-4).log() - (other + 1e-4).log()).abs().mean()
        return total


@healthy("sound")
def spectra_of_two_lengths(seed: int) -> Setup:
    """Waves cleaned of noise, with a loss of logarithms whose slope is steep at silence, by Adam."""
    return Setup(Spectra(perceptron([128, 64, 128], nn.Tanh), mse_loss, adam(0.003)), _tones(300, 16))


def _pixels(steps: int, size: int) -> list[Batch]:
    """Return digits of 4 times 4 pixels, and of 8 times 8."""
    sharp = [images.view(-1, 1, 8, 8) for images, _ in drawn(digits(), steps, size)]
    return [(nn.functional.avg_pool2d(images, 2), images) for images in sharp]


class Upscaler(nn.Module):
    """Adds details to an image that is enlarged by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return an image twice as large."""
        details = nn.functional.pixel_shuffle(self.second(self.first(images).relu()), 2)
        return interpolate(images, scale_factor=2, mode="bilinear") + details


@exploding("sharper images", begins=100)
def upscaling_at_rising_rate(seed: int) -> Setup:
    """From step 100 on the rate of gradient descent in bfloat16 rises by five percent a step."""
    module = ScenarioModule(Upscaler(), mse_loss, sgd(0.03, 0.9), lambda step: 1.05 ** max(0, step - 100))
    return Setup(module, _pixels(300, 16), {"precision": "bf16-mixed"})


@healthy("sharper images")
def upscaling_by_orthogonal_steps(seed: int) -> Setup:
    """Small errors from the start on, and orthogonal steps for the matrices."""
    network = nn.Sequential(nn.Flatten(), perceptron([16, 96, 64]), nn.Unflatten(1, (1, 8, 8)))
    return Setup(ScenarioModule(network, mse_loss, partial(Signed, lr=0.003, orthogonal=True)), _pixels(300, 32))


class Splats(nn.Module):
    """A picture made of round spots with a place, a width and a brightness each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(count, 2) * 8)
        self.widths = nn.Parameter(torch.zeros(count))
        self.lights = nn.Parameter(torch.zeros(count))

    def forward(self, points: Tensor) -> Tensor:
        """Return the brightness of points."""
        distance = (points[:, None] - self.places).square().sum(-1)
        light: Tensor = ((-0.5 * distance * (-2 * self.widths).exp()).exp() * self.lights).sum(1, keepdim=True)
        return light


def _points(steps: int, size: int) -> list[Batch]:
    image = digits()[0][int(torch.randint(1000, ()))].view(8, 8)
    places = torch.randint(8, (steps, size, 2))
    return [(one.float() + 0.5, image[one[:, 0], one[:, 1]][:, None]) for one in places]


@exploding("rendering")
def spots_at_high_rate(seed: int) -> Setup:
    """Spots whose widths enter by an exponential, by gradient descent with momentum."""
    return Setup(ScenarioModule(Splats(30), mse_loss, sgd(2.0, 0.9)), _points(300, 32))


@healthy("rendering")
def spots_made_brighter(seed: int) -> Setup:
    """The dimmest spots are put elsewhere every sixty steps, according to plan, by Adam."""

    def move(module: ScenarioModule) -> None:
        places, lights = module.network.get_parameter("places"), module.network.get_parameter("lights")
        dim = lights.abs().argsort()[:5]
        with torch.no_grad():
            places[dim] = torch.rand(5, 2) * 8

    events = dict.fromkeys((60, 120, 180), move)
    return Setup(ScenarioModule(Splats(30), mse_loss, adam(0.03), events=events), _points(300, 32))


class Automaton(nn.Module):
    """Grows an image from one cell by the same small step, many times."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.look = nn.Conv2d(8, 24, 3, padding=1)
        self.change = nn.Conv2d(24, 8, 1)
        nn.init.zeros_(self.change.weight)

    def forward(self, state: Tensor) -> Tensor:
        """Return the first channel after all turns."""
        for _ in range(self.turns):
            state = state + self.change(self.look(state).relu())
        return state[:, :1]


def _seeds(steps: int) -> list[Batch]:
    image = digits()[0][int(torch.randint(1000, ()))].view(1, 1, 8, 8)
    start = torch.zeros(4, 8, 8, 8)
    start[:, :, 4, 4] = 1.0
    return [(start + 0.02 * torch.randn_like(start), image.expand(4, -1, -1, -1)) for _ in range(steps)]


@exploding("automata")
def automaton_of_many_turns(seed: int) -> Setup:
    """Twenty turns, whose gain compounds, by RMSprop."""
    return Setup(ScenarioModule(Automaton(20), mse_loss, partial(RMSprop, lr=0.01)), _seeds(200))


@healthy("automata")
def automaton_of_few_turns(seed: int) -> Setup:
    """Eight turns by Adam, whose gradients rise while the image grows."""
    return Setup(ScenarioModule(Automaton(8), mse_loss, adam(0.002)), _seeds(200))


class _Spike(torch.autograd.Function):
    """A step, whose slope is taken to be that of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        change: Tensor = slope[0] / (1 + 4 * value.abs()).square()
        return change


class Spiking(nn.Module):
    """Units that add up currents, also each other's, and fire; the loss takes what the outputs have added up."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.into, self.among, self.out = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the potentials of the outputs."""
        spike: Callable[[Tensor], Tensor] = _Spike.apply
        charge = fired = torch.zeros(len(images), 48)
        total = torch.zeros(len(images), 10)
        for _ in range(self.turns):
            charge = 0.9 * charge * (1 - fired) + self.into(images) + self.among(fired)
            fired = spike(charge - 1)
            total = total + self.out(fired)
        return total


@exploding("spikes")
def spikes_over_long_time(seed: int) -> Setup:
    """Twenty-five turns of spikes, by gradient descent with momentum at a high rate."""
    return Setup(ScenarioModule(Spiking(25), cross_entropy, sgd(0.3, 0.9)), drawn(digits(), 200, 32))


@healthy("spikes")
def spikes_by_signs(seed: int) -> Setup:
    """Ten turns, by steps of signs."""
    return Setup(ScenarioModule(Spiking(10), cross_entropy, partial(Signed, lr=0.001)), drawn(digits(), 250, 32))


class Disc(nn.Module):
    """Points in a hyperbolic disc; a tree's edges should be short there."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(0.01 * torch.randn(63, 4))

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the closeness of pairs, high for close ones."""
        one, other = self.points[pairs[..., 0]], self.points[pairs[..., 1]]
        inner = (1 - one.square().sum(-1)).clamp(min=1e-5) * (1 - other.square().sum(-1)).clamp(min=1e-5)
        closeness: Tensor = 1 - torch.acosh(1 + 2 * (one - other).square().sum(-1) / inner + 1e-7)
        return closeness


def _edges(steps: int, size: int) -> list[Batch]:
    batches = []
    for child in torch.randint(1, 63, (steps, size)):
        true = torch.stack([child, (child - 1) // 2], -1)
        false = torch.stack([child, torch.randint(63, (size,))], -1)
        batches.append((torch.cat([true, false]), torch.cat([torch.ones(size), torch.zeros(size)])))
    return batches


@exploding("hyperbolic space")
def tree_at_high_rate(seed: int) -> Setup:
    """Points that reach the disc's border, where distances and slopes have no bound, by gradient descent."""
    return Setup(ScenarioModule(Disc(), binary_cross_entropy_with_logits, sgd(3.0)), _edges(300, 32))


@healthy("hyperbolic space")
def tree_after_burn_in(seed: int) -> Setup:
    """A tenth of the rate for fifty steps, then all of it."""
    schedule = lambda step: 0.1 if step < 50 else 1.0  # noqa: E731
    module = ScenarioModule(Disc(), binary_cross_entropy_with_logits, partial(Adam, lr=0.01), schedule)
    return Setup(module, _edges(300, 32))
