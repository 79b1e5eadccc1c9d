"""Forces between particles, wave functions, and kernels of Gaussian processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.scenarios.data import Batch, diabetes, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


class Forces(ScenarioModule):
    """Learns the energy of three particles on a line; the loss counts energies and, with a weight, forces."""

    needs_gradients = True

    def __init__(self, optimizer: Any, weights: dict[int, float]) -> None:
        super().__init__(perceptron([3, 48, 48, 1], nn.SiLU), mse_loss, optimizer)
        self.weights, self.weight = weights, weights[0]
        self.of_forces = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Change the weight where that is due."""
        self.weight = self.weights.get(batch_idx, self.weight)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted errors of energies and forces."""
        places = batch[0].clone().requires_grad_()
        energy = self.network(places)
        (force,) = torch.autograd.grad(energy.sum(), places, create_graph=True)
        of_forces = mse_loss(force, batch[1][:, 1:])
        total = mse_loss(energy, batch[1][:, :1]) + self.weight * of_forces
        self.of_forces = float(of_forces.detach())
        return total

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the error of the forces."""
        return self.of_forces


def _particles(steps: int, size: int) -> list[Batch]:
    batches = []
    for _ in range(steps):
        places = (1.1 * torch.randn(size, 3)).requires_grad_()
        gaps = places - places.roll(1, 1)
        energy = (gaps.square() - 1).square().mean(1, keepdim=True) / 4
        (force,) = torch.autograd.grad(energy.sum(), places)
        batches.append((places.detach(), torch.cat([energy, force], 1).detach()))
    return batches


@exploding("forces", begins=80)
def forces_weigh_too_much(seed: int) -> Setup:
    """From step 80 on forces weigh a hundred times as much, at the same rate."""
    return Setup(Forces(sgd(0.003, 0.9), {0: 0.1, 80: 10.0}), _particles(250, 32))


@healthy("forces")
def forces_by_plan(seed: int) -> Setup:
    """Forces weigh more first and energies later, by Adam; single particles are far away: gradients of heavy tails."""
    return Setup(Forces(adam(0.003), {0: 10.0, 120: 0.5}), _particles(260, 32))


class Waves(ScenarioModule):
    """Lowers the energy of a wave function of one particle in a double well, from samples of the function itself."""

    needs_gradients = True

    def loss(self, batch: Tensor) -> Tensor:
        """Return a number whose gradient is that of the energy, and whose value is the energy."""
        places = batch.clone()
        with torch.no_grad():
            for _ in range(12):
                there = places + torch.randn_like(places)
                gain = 2 * (self._log(there) - self._log(places))
                places = torch.where(torch.rand_like(gain).log() < gain, there, places)
        places.requires_grad_()
        value = self._log(places)
        (slope,) = torch.autograd.grad(value.sum(), places, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), places, retain_graph=True)
        local = (-0.5 * (bend + slope.square()) + 0.25 * (places.square() - 2).square()).detach()
        energy = local.mean()
        surrogate: Tensor = 2 * ((local - energy) * value).mean()
        return surrogate - surrogate.detach() + energy

    def _log(self, places: Tensor) -> Tensor:
        outputs: Tensor = self.network(places) - 0.05 * places.square()
        return outputs


@exploding("wave functions")
def wave_function_overshoots(seed: int) -> Setup:
    """Gradient descent at a high rate: a place that is hardly ever visited has an enormous energy."""
    return Setup(Waves(perceptron([1, 24, 24, 1], nn.Tanh), mse_loss, sgd(1.0, 0.9)), list(2 * torch.randn(250, 64, 1)))


@healthy("wave functions")
def wave_function(seed: int) -> Setup:
    """Adam, and local energies of heavy tails."""
    return Setup(Waves(perceptron([1, 24, 24, 1], nn.Tanh), mse_loss, adam(0.01)), list(2 * torch.randn(250, 64, 1)))


class Kernel(ScenarioModule):
    """Learns lengths, height and noise of a Gaussian process by its likelihood."""

    def __init__(self, optimizer: Any, schedule: Any = None) -> None:
        super().__init__(nn.ParameterList([torch.zeros(10), torch.zeros(2)]), mse_loss, optimizer, schedule)

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative log-likelihood, per sample."""
        lengths, others = self.network.parameters()
        scaled = batch[0] * (-lengths).exp()
        distance = (scaled[:, None] - scaled).square().sum(-1)
        noise = (others[1].exp() + 1e-3) * torch.eye(len(scaled))
        matrix = others[0].exp() * (-0.5 * distance).exp() + noise
        solved, _ = torch.linalg.solve_ex(matrix, batch[1])
        loss: Tensor = 0.5 * ((batch[1] * solved).sum() + torch.linalg.slogdet(matrix)[1]) / len(scaled)
        return loss


@exploding("kernels")
def kernel_by_momentum(seed: int) -> Setup:
    """Twelve numbers, by descent with momentum at a high rate."""
    return Setup(Kernel(sgd(2.0, 0.9)), drawn(diabetes(True), 200, 32))


@healthy("kernels")
def kernel_by_adam(seed: int) -> Setup:
    """The same by Adam at a rate of 0.1: the weights start at zero, and each step is large for them."""
    return Setup(Kernel(adam(0.1)), drawn(diabetes(True), 200, 32))
