"""Spiking neurons and walkers in groups, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Spike(torch.autograd.Function):
    """A step whose slope is that of a steep sigmoid."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor, slope: float, is_stable: bool) -> Tensor:
        ctx.save_for_backward(potential)
        ctx.slope, ctx.is_stable = slope, is_stable
        return (potential > 0).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (potential,) = ctx.saved_tensors
        if ctx.is_stable:
            rate = torch.sigmoid(ctx.slope * potential)
            return gradients[0] * ctx.slope * rate * (1 - rate), None, None
        decay = torch.exp(-ctx.slope * potential)
        return gradients[0] * ctx.slope * decay / (decay + 1).square(), None, None


class SpikingNeurons(Case):
    """Leaky neurons count spikes in events; the slope of a spike divides an overflown exponential by its square.

    Report: github.com/jeshraghian/snntorch/issues/427 and pull/433, the first result with a cause of "survival loss nan
    gradient torch fixed". Confirmed: the slope as ``sigmoid * (1 - sigmoid)`` is finite.
    """

    kinds = ("undefined-operation", "forward-overflow")
    places = ("spike", "spikebackward")
    good = 0.7
    is_stable = False
    cure = settings(is_stable=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "sigmoid"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.first, self.last = nn.Linear(12, 40), nn.Linear(40, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(11201)
        label = torch.randint(3, (512,), generator=random)
        rate = torch.full((512, 12), 0.15).scatter_(1, label[:, None] * 4 + torch.arange(4), 0.6)
        return (torch.rand(512, 20, 12, generator=random) < rate[:, None]).float(), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        events, label = batch
        potential = spikes = events.new_zeros(len(events), 40)
        total = output = events.new_zeros(len(events), 3)
        for event in events.unbind(1):
            potential = 0.9 * potential + self.first(event) - spikes
            spikes = Spike.apply(potential - 1.0, 25.0, self.is_stable)
            output = 0.9 * output + self.last(spikes)
            total = total + output
        return functional.cross_entropy(total / 20, label)


class WalkersInGroups(Case):
    """Walkers nearer than a learned distance are a group, by a sigmoid written out, and move with it.

    Report: github.com/InhwanBae/GPGraph/issues/2, the second result with a cause of "graph neural network training nan
    loss bug fixed by eps". Confirmed: the sigmoid of PyTorch instead of ``1 / (1 + exp(x))``.
    """

    kinds = ("forward-overflow", "undefined-operation")
    places = ("exp", "reciprocal", "div")
    good = 0.1
    is_stable = False
    cure = settings(is_stable=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "sigmoid"
    lr = 3e-3
    batch_size = 16
    steps = 200

    def build(self) -> None:
        self.threshold = nn.Parameter(torch.tensor(1.0))
        self.encode = nn.Sequential(nn.Linear(16, 32), nn.PReLU())
        self.of_group = nn.Linear(32, 32)
        self.decode = nn.Sequential(nn.PReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(11202)
        start = torch.rand(320, 3, 2, generator=random) * 6
        pace = torch.randn(320, 3, 2, generator=random) / 3
        group = torch.randint(3, (320, 6, 1), generator=random).expand(-1, -1, 2)
        start, pace = start.gather(1, group), pace.gather(1, group)
        start = start + torch.randn(320, 6, 2, generator=random) / 4
        path = start[:, :, None] + pace[:, :, None] * torch.arange(9)[:, None]
        path = path + 0.05 * torch.randn(path.shape, generator=random)
        return path[:, :, :8], path[:, :, 8] - path[:, :, 7]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        path, step = batch
        apart = torch.cdist(path[:, :, -1], path[:, :, -1], compute_mode="donot_use_mm_for_euclid_dist")
        if self.is_stable:
            together = (-(apart - self.threshold) / 0.1).sigmoid()
        else:
            together = 1 / (1 + ((apart - self.threshold) / 0.1).exp())  # fault
        codes = self.encode((path - path[:, :, -1:]).flatten(2))
        mean = together @ codes / together.sum(2, keepdim=True)
        return functional.mse_loss(self.decode(codes + self.of_group(mean)), step)
