"""Points, graphs, paths and densities, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class AmplifiedSlowGradients(Case):
    """An average of the gradients is amplified and added to them, at each of sixteen batches that one step follows."""

    # github.com/ironjr/grokfast/issues/9
    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.5
    at_each_batch = True
    cure = settings(at_each_batch=False)
    cured_by = "once|before the step|zero_grad"
    lr = 0.3
    steps = 640

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.slow = [torch.zeros_like(one) for one in self.parameters()]
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        rows = torch.randn(512, 8, generator=noise(9101))
        return rows, rows[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def amplify(self) -> None:
        for slow, weight in zip(self.slow, self.parameters(), strict=True):
            if weight.grad is not None:
                slow.mul_(0.9).add_(weight.grad, alpha=0.1)
                weight.grad.add_(slow, alpha=5.0)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch) / 16
        watch.loss(loss)
        backward(loss)
        self.taken += 1
        last = self.taken % 16 == 0
        if self.at_each_batch or last:
            self.amplify()
        if last:
            optimizer.step()
            optimizer.zero_grad()


class PropagatedDepth(Case):
    """Sparse depths are spread by learned affinities of a neighbourhood, not divided by their sum, in 24 rounds."""

    # github.com/XinJCheng/CSPN/issues/13
    kinds = ("recurrence",)
    host = "plain"
    good = 0.6
    is_divided = False
    cure = settings(is_divided=True)
    cured_by = r"shorter|truncat|normali[sz]|divide|spectral|fewer"
    lr = 1e-2
    steps = 100

    def build(self) -> None:
        self.guide = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 3, 3, padding=1))

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(9102)
        depth = torch.randn(320, 1, 24, generator=random).cumsum(2) / 4
        picture = torch.cat([depth, torch.randn(320, 2, 24, generator=random)], 1)
        seen = depth + 0.3 * torch.randn(320, 1, 24, generator=random)
        return picture, seen, depth

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        picture, spread, depth = batch
        affinities = self.guide(picture) + 1.0
        if self.is_divided:
            affinities = affinities / (affinities.abs().sum(1, keepdim=True) + 1e-6)
        for _ in range(24):
            around = functional.pad(spread, (1, 1), mode="replicate").unfold(2, 3, 1)[:, 0].transpose(1, 2)
            spread = (affinities * around).sum(1, keepdim=True)
        return functional.mse_loss(spread, depth)


class SquaredDistances(Case):
    """Distances between points as the root of |a|^2 + |b|^2 - 2ab, which rounding takes below zero."""

    # github.com/SkyworkAI/PointCloudMamba/issues/2
    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "plain"
    good = 0.3
    smallest = -math.inf
    cure = settings(smallest=1e-6)
    lr = 3e-3
    steps = 120

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(3, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9103)
        size = torch.rand(320, 1, 1, generator=random) + 0.5
        return 3 * torch.ones(3) + size * torch.randn(320, 12, 3, generator=random), size[:, :, 0]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, size = batch
        codes = points + self.embed(points)[..., :3]
        squares = codes.square().sum(2)
        apart = squares[:, :, None] + squares[:, None] - 2 * codes @ codes.transpose(1, 2)
        far = apart.clamp(min=self.smallest).sqrt().sort(2).values
        return functional.mse_loss(self.head(far[..., [2, 6, 11]].mean(1)), size)


class UnsetMixture(Case):
    """A graph network whose mixture of kinds of edges is a tensor that nobody filled: it holds what memory held."""

    # github.com/seongjunyun/Graph_Transformer_Networks/issues/20
    kinds = ("initialization",)
    good = 0.7
    is_filled = False
    cure = settings(is_filled=True)
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        left_in_memory = torch.tensor([3e-41, 7.2e20, 1e-38, 4.1e12])
        self.mixture = nn.Parameter(0.25 * torch.ones(4) if self.is_filled else left_in_memory)
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(9104)
        nodes = torch.randn(320, 8, 6, generator=random)
        edges = (torch.rand(320, 4, 8, 8, generator=random) < 0.3).float() / 3
        return nodes, edges, nodes[..., :3].mean(1).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        nodes, edges, label = batch
        graph = torch.einsum("k,bkij->bij", self.mixture, edges) + torch.eye(8)
        hidden = self.first(graph @ nodes).relu()
        return functional.cross_entropy(self.last(hidden.mean(1)), label)


class PathsOfWalkers(Case):
    """The next places of walkers as a bivariate normal density, at a rate that the authors' batches bore."""

    # github.com/abduallahmohamed/Social-STGCNN/issues/20
    kinds = ("learning-rate",)
    good = 2.0
    cure = settings(lr=1e-3)
    lr = 1.0
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.PReLU(), nn.Linear(32, 5))

    def data(self) -> tuple[Tensor, Tensor]:
        pace = torch.randn(512, 1, 2, generator=noise(9105)) / 2
        path = pace.expand(512, 9, 2).cumsum(1) + 0.2 * torch.randn(512, 9, 2, generator=noise(9106))
        return path[:, :8], path[:, 8] - path[:, 7]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = self.net(batch[0])
        wide, together = out[:, 2:4].exp(), out[:, 4].tanh()
        x, y = ((batch[1] - out[:, :2]) / wide).unbind(1)
        rest = 1 - together.square()
        density = (-(x * x + y * y - 2 * together * x * y) / (2 * rest)).exp()
        density = density / (2 * math.pi * wide.prod(1) * rest.sqrt())
        return -density.clamp(min=1e-20).log().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ManyCouplings(Case):
    """A flow of 32 affine couplings of 19 columns; nothing bounds the logarithm of a scale."""

    # github.com/VincentStimper/normalizing-flows/issues/73
    kinds = ("forward-overflow", "learning-rate")
    good = 26.0
    is_bounded = False
    cure = settings(is_bounded=True, lr=1e-3)
    cured_by = "bound|clamp|learning rate|lower"
    lr = 3e-2
    steps = 80

    def build(self) -> None:
        nets = [nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 18)) for _ in range(32)]
        for last in (one[2] for one in nets):
            for weight in last.parameters():
                nn.init.zeros_(weight)
        self.nets = nn.ModuleList(nets)

    def data(self) -> tuple[Tensor]:
        random = noise(9107)
        return (torch.randn(512, 19, generator=random) @ torch.randn(19, 19, generator=random) / 5,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (rows,) = batch
        volume = rows.new_zeros(len(rows))
        for net in self.nets:
            shift, scale = net(rows[:, :10]).chunk(2, 1)
            scale = scale.tanh() / 4 if self.is_bounded else scale
            rows = torch.cat([rows[:, 10:] * scale.exp() + shift, rows[:, :10]], 1)
            volume = volume + scale.sum(1)
        return (rows.square().sum(1) / 2 - volume).mean() + 19 * math.log(2 * math.pi) / 2
