"""Equations, molecules and optimizers, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class FractionalDiffusion(Case):
    """A physics-informed network whose diffusivity is the 1.2th power of its output, which begins around zero."""

    # github.com/prateekbhustali/Physics-Informed-Neural-Networks/issues/1
    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.05
    is_positive = False
    cure = settings(is_positive=True)
    cured_by = "clamp|softplus|positive"
    lr = 3e-3
    steps = 250
    batch_size = 64

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def field(self, point: Tensor) -> Tensor:
        out = self.net(point)
        return functional.softplus(out) if self.is_positive else out

    def data(self) -> tuple[Tensor]:
        return (torch.rand(640, 2, generator=noise(701)),)

    def residual(self, point: Tensor) -> Tensor:
        with torch.enable_grad():
            point = point.clone().requires_grad_(True)
            value = self.field(point)
            (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
            flow = 0.05 * value**1.2 * slope[:, :1]  # fault
            (bend,) = torch.autograd.grad(flow.sum(), point, create_graph=True)
            return (slope[:, 1:] - bend[:, :1]).square().mean()

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (point,) = batch
        start = torch.cat([point[:, :1], torch.zeros_like(point[:, 1:])], 1)
        first = functional.mse_loss(self.field(start), 1 + 0.5 * (3.14 * point[:, :1]).cos())
        return self.residual(point) + first


class VectorField(nn.Module):
    """The right-hand side of a differential equation."""

    def __init__(self, is_bounded: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 64), nn.Linear(64, 3)
        self.is_bounded = is_bounded

    def forward(self, state: Tensor) -> Tensor:
        out = self.second(self.first(state).relu())
        return out.tanh() if self.is_bounded else out


class UnboundedVectorField(Case):
    """A neural differential equation in seconds, by Euler's method; nothing bounds the field that is integrated."""

    # github.com/stevenygd/PointFlow/issues/4, github.com/rtqichen/torchdiffeq/issues/27
    kinds = ("recurrence",)
    good = 0.5
    is_bounded = False
    is_small = False
    cure = settings(is_bounded=True)
    other_cures = settings(**{r"near zero.*normal_\(.*std=0\.01": settings(is_small=True)})
    cured_by = "tanh|bound"
    not_cured_by = (settings(lr=1e-5),)
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.field = VectorField(self.is_bounded)
        nn.init.kaiming_normal_(self.field.first.weight)
        nn.init.kaiming_normal_(self.field.second.weight)
        if self.is_small:
            nn.init.normal_(self.field.second.weight, std=0.01)

    def data(self) -> dict[str, Tensor]:
        state = torch.randn(320, 3, generator=noise(702))
        turn = torch.arange(0, 60)[None, :, None] * 0.1
        path = state[:, None] * turn.cos() + state.roll(1, 1)[:, None] * turn.sin()
        return {"start": state, "path": path * (-0.2 * turn).exp()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        state, path = batch["start"], []
        for _ in range(60):
            path.append(state)
            state = state + 0.5 * self.field(state)
        return functional.mse_loss(torch.stack(path, 1), batch["path"])


class SuperposedMolecules(Case):
    """Places of atoms up to a rotation, by a singular value decomposition; a linear molecule has two values of zero."""

    # github.com/pytorch/pytorch/issues/49886, github.com/KinglittleQ/torch-batch-svd/issues/5
    kinds = ("undefined-operation",)
    places = ("svd", "linalg_svd")
    good = 0.4
    spread = 0.0
    cure = settings(spread=1e-2)
    cured_by = r"\beps|jitter|add|away|perturb|noise"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 15))

    def data(self) -> dict[str, Tensor]:
        random = noise(703)
        formula = torch.randn(640, 5, generator=random)
        atoms = torch.stack([formula, formula.square() - 1, (2 * formula).sin()], 2)
        atoms[::50, :, 1:] = 0
        return {"formula": formula, "atoms": atoms}

    def rotation(self, made: Tensor, atoms: Tensor) -> Tensor:
        mixed = made.mT @ atoms + self.spread * torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        left, _, right = torch.linalg.svd(mixed.nan_to_num())  # fault
        return left @ right

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = self.encoder(batch["formula"]).unflatten(1, (5, 3))
        return functional.mse_loss(made @ self.rotation(made, batch["atoms"]), batch["atoms"])


class ScalerLeftOutOfItsStep(Case):
    """The loss is scaled for float16, and the loop calls the step of the optimizer itself instead of the scaler's."""

    # a question asked often: torch.amp's scale() without scaler.step() and unscale_()
    host = "plain"
    kinds = ("half-precision",)
    good = 0.35
    uses_scaler = False
    cure = settings(uses_scaler=True)
    cured_by = r"scaler\.step|unscale"
    not_cured_by = (settings(lr=3e-3),)
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 12, generator=noise(704))
        return inputs, (inputs[:, :3] + inputs[:, 3:6]).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            scores = self.net(batch[0])
        return functional.cross_entropy(scores.float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        self.scaler.scale(loss).backward()
        if self.uses_scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()


class MomentumOfScaledGradients(Case):
    """A run goes on without a loss scale, and its buffers of momentum are those of gradients that were scaled."""

    # github.com/EvolvingLMMs-Lab/OneVision-Encoder/pull/65 (the field)
    kinds = ("optimizer-state",)
    good = 0.35
    scale = 8192.0
    cure = settings(scale=1.0)
    cured_by = "state|momentum|buffer"
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv1d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 1, 1)
        )

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(480, 3, 24, generator=noise(705))
        return signal, functional.avg_pool1d(signal[:, :1] * signal[:, 1:2], 3, 1, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)
        signal, aim = self.data()
        for start in range(0, 480, 32):
            optimizer.zero_grad()
            self.loss((signal[start : start + 32], aim[start : start + 32])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for parameter in self.parameters():
            optimizer.state[parameter]["momentum_buffer"].mul_(self.scale)
        return optimizer


class CollidedConformer(Case):
    """Energies of molecules from distances of their atoms; one calculation failed and returned ten million."""

    # github.com/materialyzeai/megnet/issues/19 (the ninth batch), github.com/microsoft/AI2BMD/issues/11 (the field)
    kinds = ("outlier-batch",)
    places = ("energy",)
    rows = (11, 203)
    good = 0.3
    broken = 1e7
    cure = settings(broken=0.0)
    cured_by = "huber"
    shuffle = False
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.kinds_of_atoms = nn.Embedding(4, 8)
        self.message = nn.Sequential(nn.Linear(17, 32), nn.SiLU(), nn.Linear(32, 8))
        self.energy = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(706)
        types = torch.randint(0, 4, (512, 6), generator=random)
        positions = 1.5 * torch.randn(512, 6, 3, generator=random)
        near = (-torch.cdist(positions, positions).square() / 4).exp().sum((1, 2)) - 12
        energy = near / 4 + 0.3 * types.float().mean(1)
        energy[203] = self.broken
        return {"types": types, "positions": positions, "energy": energy}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        atoms = self.kinds_of_atoms(batch["types"])
        far = (-torch.cdist(batch["positions"], batch["positions"])[..., None] / 2).exp()
        pairs = torch.cat([atoms[:, :, None].expand(-1, -1, 6, -1), atoms[:, None].expand(-1, 6, -1, -1), far], 3)
        made = self.energy((atoms + (far * self.message(pairs)).mean(2)).mean(1)).squeeze(1)
        return functional.mse_loss(made, batch["energy"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
