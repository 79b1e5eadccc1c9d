"""Generative models: diffusion, flows, energies, critics and codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.scenarios.data import ring
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Diffusion(ScenarioModule):
    """Predicts the noise on points of a ring from the noisy point and its level.

    Args:
        optimizer: Builds the optimizer.
        weighted: Whether levels count by their inverse variance, and not alike.
        points: Whether the point is predicted, by division by the level, and not the noise.
    """

    def __init__(self, optimizer: MakeOptimizer, weighted: bool = False, points: bool = False) -> None:
        super().__init__(perceptron([3, 64, 64, 2], nn.SiLU), mse_loss, optimizer)
        self.weighted, self.points = weighted, points

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the prediction."""
        clean, noise = batch[0], batch[1][:, :2]
        level = torch.rand(len(clean), 1).clamp(1e-3)
        noisy = (1 - level.square()).sqrt() * clean + level * noise
        said = self.network(torch.cat([noisy, level], 1))
        if self.points:
            return (said / level - clean / level).square().mean()  # type: ignore[no-any-return]
        weights = level.square().reciprocal().clamp(max=1e4) if self.weighted else 1.0
        return (weights * (said - noise).square()).mean()  # type: ignore[no-any-return]


@healthy("diffusion")
def diffusion(seed: int) -> Setup:
    """All noise levels count alike."""
    return Setup(Diffusion(adam(0.003)), ring(300, 64))


@healthy("diffusion")
def diffusion_weighted(seed: int) -> Setup:
    """Levels count by their inverse variance: losses with heavy tails."""
    return Setup(Diffusion(adam(0.003), weighted=True), ring(300, 64))


@healthy("diffusion")
def diffusion_by_descent(seed: int) -> Setup:
    """Gradient descent with momentum, eight points a step."""
    return Setup(Diffusion(sgd(0.05, momentum=0.9)), ring(300, 8))


@exploding("diffusion")
def diffusion_small_levels(seed: int) -> Setup:
    """A division by the noise level, whose smallest values make the steps too large."""
    return Setup(Diffusion(sgd(0.1), points=True), ring(200, 64))


@exploding("diffusion")
def diffusion_rate_too_high(seed: int) -> Setup:
    """Adam with a learning rate of one."""
    return Setup(Diffusion(adam(1.0)), ring(300, 64))


class Flow(ScenarioModule):
    """Couplings of affine maps (Dinh et al. 2017), trained by the likelihood.

    Args:
        optimizer: Builds the optimizer.
        bounded: Whether the logarithm of a scale is bounded.
    """

    def __init__(self, optimizer: MakeOptimizer, bounded: bool = True) -> None:
        network = nn.ModuleList(perceptron([1, 32, 2]) for _ in range(6))
        super().__init__(network, mse_loss, optimizer)
        self.bounded = bounded

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the negative log-likelihood of the points."""
        points, total = batch[0], torch.zeros(len(batch[0]))
        assert isinstance(self.network, nn.ModuleList)
        for coupling in self.network:
            kept, changed = points[:, :1], points[:, 1:]
            scale, shift = coupling(kept).chunk(2, 1)
            scale = scale.tanh() if self.bounded else scale
            points = torch.cat([changed * scale.exp() + shift, kept], 1)
            total = total + scale[:, 0]
        return (0.5 * points.square().sum(1) - total).mean()


@healthy("flows")
def flow(seed: int) -> Setup:
    """Points of a ring; the loss falls through zero."""
    return Setup(Flow(adam(0.005)), ring(250, 64))


@healthy("flows")
def flow_unbounded(seed: int) -> Setup:
    """Scales without a bound, at a learning rate that they bear."""
    return Setup(Flow(adam(0.001), bounded=False), ring(250, 64))


@exploding("flows")
def flow_rate_too_high(seed: int) -> Setup:
    """Scales without a bound, by gradient descent at a learning rate of one half."""
    return Setup(Flow(sgd(0.5), bounded=False), ring(200, 64))


@exploding("flows")
def flow_on_one_point(seed: int) -> Setup:
    """All points lie on a line, so that the likelihood has no bound: scales grow for ever."""
    points = torch.stack([torch.randn(400, 64), torch.zeros(400, 64)], -1)
    return Setup(Flow(adam(0.05), bounded=False), [(one, one) for one in points])


class Energy(ScenarioModule):
    """An energy that is low on points of a ring and high elsewhere.

    Args:
        optimizer: Builds the optimizer.
        form: ``"gap"`` is the difference of mean energies and has no floor; ``"penalty"`` adds their squares;
            ``"margin"`` is a hinge; ``"slope"`` penalizes the slope (Gulrajani et al. 2017).
    """

    needs_gradients = True

    def __init__(self, optimizer: MakeOptimizer, form: str) -> None:
        super().__init__(perceptron([2, 32, 32, 1]), mse_loss, optimizer)
        self.form = form

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of real and made-up points."""
        real, fake = batch[0], batch[1][:, :2]
        low, high = self.network(real), self.network(fake)
        gap = (low - high).mean()
        if self.form == "penalty":
            return gap + 0.1 * (low.square() + high.square()).mean()  # type: ignore[no-any-return]
        if self.form == "margin":
            return (1 + low).relu().mean() + (1 - high).relu().mean()  # type: ignore[no-any-return]
        if self.form == "slope":
            between = (0.5 * (real + fake)).requires_grad_()
            slope = torch.autograd.grad(self.network(between).sum(), between, create_graph=True)[0]
            return gap + 10 * (slope.norm(dim=1) - 1).square().mean()  # type: ignore[no-any-return]
        total: Tensor = gap
        return total


@healthy("energies")
def energy_with_penalty(seed: int) -> Setup:
    """Energies are kept small; the loss starts near zero and falls below it."""
    return Setup(Energy(adam(0.003), "penalty"), ring(250, 64))


@healthy("energies")
def energy_with_margin(seed: int) -> Setup:
    """A hinge, satisfied by ever more points."""
    return Setup(Energy(adam(0.003), "margin"), ring(250, 64))


@healthy("energies")
def energy_with_slope(seed: int) -> Setup:
    """The slope is penalized, by gradients of gradients."""
    return Setup(Energy(adam(0.003), "slope"), ring(200, 64))


@exploding("energies")
def energy_without_floor(seed: int) -> Setup:
    """The difference of the energies alone, by Adam: it falls for ever."""
    return Setup(Energy(adam(0.1), "gap"), ring(400, 64))


@exploding("energies")
def energy_by_descent(seed: int) -> Setup:
    """The same by gradient descent, which is faster the further it is."""
    return Setup(Energy(sgd(0.1), "gap"), ring(300, 64))


@exploding("energies")
def energy_slope_too_steep(seed: int) -> Setup:
    """The penalty of the slope at a learning rate that it does not bear."""
    return Setup(Energy(sgd(0.5), "slope"), ring(200, 64))


class Codes(ScenarioModule):
    """An autoencoder whose code is the nearest of sixteen vectors (van den Oord et al. 2017)."""

    def __init__(self, optimizer: MakeOptimizer, commitment: float) -> None:
        network = nn.ModuleDict(
            {"encoder": perceptron([2, 32, 4]), "decoder": perceptron([4, 32, 2]), "codes": nn.Embedding(16, 4)}
        )
        super().__init__(network, mse_loss, optimizer)
        self.commitment = commitment

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the reconstruction, and of the codes."""
        parts: Any = self.network
        coded = parts["encoder"](batch[0])
        codes = parts["codes"].weight
        nearest = codes[(coded[:, None] - codes[None]).square().sum(2).argmin(1)]
        passed = coded + (nearest - coded).detach()
        error = mse_loss(parts["decoder"](passed), batch[0])
        return error + mse_loss(nearest, coded.detach()) + self.commitment * mse_loss(coded, nearest.detach())


@healthy("codes")
def vector_codes(seed: int) -> Setup:
    """Codes and encoder keep each other in reach; most codes are never used."""
    return Setup(Codes(adam(0.005), 0.25), ring(250, 64))


@exploding("codes")
def codes_rate_too_high(seed: int) -> Setup:
    """Gradient descent whose commitment makes the encoder overshoot."""
    return Setup(Codes(sgd(3.0), 5.0), ring(200, 64))
