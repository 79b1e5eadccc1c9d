"""Molecules, robots and gratings, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class StrainedConformers(Case):
    """Forces on the atoms of small clusters; in three conformers of the data atoms overlap, and forces are enormous.

    Report: github.com/openmm/spice-models/issues/2 and openmm/spice-dataset/issues/32. Confirmed: the loss goes up
    and down around ten million without improvement; samples with forces far outside of the others are filtered out.
    """

    kinds = ("outlier-batch",)
    places = ("force",)
    rows = (37, 212, 409)
    good = 0.12
    filters = False
    cure = settings(filters=True)
    not_cured_by = (settings(lr=3e-4),)
    cured_by = r"forces|samples"
    lr = 3e-3
    steps = 320

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(12, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.energy = nn.Linear(48, 1)
        self.register_buffer("centres", torch.linspace(0.5, 3.0, 12))

    def data(self) -> dict[str, Tensor]:
        random = noise(14101)
        corner = torch.tensor([[0, 0, 0], [1.1, 0, 0], [0, 1.1, 0], [0, 0, 1.1], [1.1, 1.1, 0]])
        place = corner + 0.12 * torch.randn(512, 5, 3, generator=random)
        force = self.true_force(place)
        place[[37, 212, 409], 1] = place[[37, 212, 409], 0] + 0.05
        force[[37, 212, 409]] = 2e4 * torch.randn(3, 5, 3, generator=random)
        keep = torch.ones(512, dtype=torch.bool)
        keep[[37, 212, 409]] = not self.filters
        return {"place": place[keep], "force": force[keep]}

    def true_force(self, place: Tensor) -> Tensor:
        apart = place[:, :, None] - place[:, None]
        far = apart.norm(dim=-1).clamp(min=0.3) + 10 * torch.eye(5)
        return (4 * ((-2 * (far - 1.2)).exp() - (-(far - 1.2)).exp())[..., None] * apart / far[..., None]).sum(2)

    def force(self, place: Tensor) -> Tensor:
        with torch.enable_grad():
            place = place.detach().requires_grad_()
            first, second = torch.triu_indices(5, 5, 1)
            far = (place[:, first] - place[:, second]).norm(dim=-1)
            features = (-4 * (far[..., None] - self.centres).square()).exp()
            (slope,) = torch.autograd.grad(self.energy(self.body(features)).sum(), place, create_graph=True)
        return -slope

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.force(batch["place"]), batch["force"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class EmptySpaceInRays(Case):
    """Densities and colors along rays through a scene, with the depths of some points; empty space has no density.

    Report: github.com/dunbar12138/DSNeRF/issues/69. Confirmed by the author: densities that a rectifier cuts off give
    weights of zero, whose logarithm is taken; a small number is added to the weights.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.12
    added = 0.0
    cure = settings(added=1e-5)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"small number|softplus"
    batch_size = 64
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(18, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.density, self.color = nn.Linear(64, 1), nn.Linear(64, 3)
        nn.init.constant_(self.density.bias, 0.5)
        self.register_buffer("points", torch.linspace(0.05, 1.95, 20))

    def data(self) -> dict[str, Tensor]:
        random = noise(14102)
        side = 2 * torch.rand(1024, 2, generator=random) - 1
        depth = 1 + 0.5 * (3 * side[:, 0]).sin() * (2 * side[:, 1]).cos()
        color = torch.stack([side[:, 0].sigmoid(), side[:, 1].sigmoid(), depth / 2], 1)
        return {"side": side, "depth": depth, "color": color}

    def along(self, side: Tensor) -> tuple[Tensor, Tensor]:
        where = torch.cat([side[:, None].expand(-1, 20, -1), self.points[None, :, None].expand(len(side), -1, 1)], 2)
        waves = torch.cat([(frequency * where).sin() for frequency in (1, 2, 4)], 2)
        waves = torch.cat([waves, *((frequency * where).cos() for frequency in (1, 2, 4))], 2)
        hidden = self.body(waves)
        alpha = 1 - (-(self.density(hidden)[..., 0].relu())).exp()
        passed = torch.cat([torch.ones(len(side), 1), 1 - alpha + 1e-10], 1).cumprod(1)[:, :-1]
        return alpha * passed, self.color(hidden).sigmoid()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        weights, color = self.along(batch["side"])
        wrong = functional.mse_loss((weights[..., None] * color).sum(1), batch["color"])
        near = (-(self.points - batch["depth"][:, None]).square() / 0.02).exp()
        return wrong - 0.01 * ((weights + self.added).log() * near).sum(1).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Modes(torch.autograd.Function):
    """Eigenvalues and eigenvectors of symmetric matrices, whose slopes are broadened where eigenvalues are close."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Return eigenvalues and eigenvectors, NaN for matrices that hold NaN."""
        lost = ~matrix.isfinite().all(-1).all(-1)
        values, vectors = torch.linalg.eigh(matrix.masked_fill(lost[:, None, None], 1.0))
        values = values.masked_fill(lost[:, None], torch.nan)
        ctx.save_for_backward(values, vectors)
        ctx.width = width
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """Return the slope of the matrix."""
        values, vectors = ctx.saved_tensors
        apart = values[..., None, :] - values[..., None]
        apart = apart / (apart.square() + ctx.width)
        apart.diagonal(dim1=-2, dim2=-1).zero_()
        inner = apart * (vectors.mT @ slopes[1]) + torch.diag_embed(slopes[0])
        slope = vectors @ inner @ vectors.mT
        return (slope + slope.mT) / 2, None


class ModesOfOneIndex(Case):
    """The profile of a grating from what it transmits, by the modes of light in it; two of the gratings are isotropic.

    Report: github.com/kch3782/torcwa/issues/11. Confirmed by the author: the slope of the eigendecomposition diverges
    for equal eigenvalues, of which isotropic profiles have pairs; the broadening of its denominator was too small.
    """

    kinds = ("undefined-operation",)
    places = ("Modes",)
    rows = (118, 390)
    host = "plain"
    good = 0.02
    width = 0.0
    cure = settings(width=1e-6)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"broaden|degenerate|equal|eigen"
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(14103)
        profile = 0.6 * torch.randn(512, 4, generator=random)
        tilt = 0.2 + 0.6 * torch.rand(512, generator=random)
        tilt[[118, 390]] = 0.0
        with torch.no_grad():
            seen = self.transmitted(profile, tilt, 1e-6)
        return {"seen": seen, "tilt": tilt}

    def transmitted(self, profile: Tensor, tilt: Tensor, width: float) -> Tensor:
        one = torch.diag_embed(profile) + torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)
        both = tilt[:, None, None] * torch.eye(4)
        matrix = torch.cat([torch.cat([one, both], 2), torch.cat([both, one], 2)], 1)
        values, vectors = Modes.apply(matrix, width)  # fault
        through = (vectors * (1.5 * values).sin()[:, None]) @ vectors.mT
        return torch.cat([through[:, 0], through[:, 2, 2:4]], 1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        profile = self.net(batch["seen"])
        return functional.mse_loss(self.transmitted(profile, batch["tilt"], self.width), batch["seen"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-3)
