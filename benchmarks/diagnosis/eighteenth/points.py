"""Clouds of points, volumes that are rendered and meshes of bodies, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class CropsOfNoise(Case):
    """Points of scanned rooms are labeled in crops of spheres; a crop of noise holds only points to be ignored.

    Report: github.com/Pointcept/Pointcept/issues/283. Found by the reporter: clouds with many noisy points are left
    with the ignored class after the crop, and the loss is NaN.
    """

    kinds = ("empty-reduction",)
    places = ("cross_entropy", "nll_loss", "nll")
    good = 0.5
    guards_empty = False
    cure = settings(guards_empty=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bskip|clamp|at least|guard|empty|filter"
    batch_size = 2
    lr = 2e-3
    steps = 450

    def build(self) -> None:
        self.point = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.seg_head = nn.Sequential(nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 4))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18501)
        segment = torch.randint(4, (480, 24), generator=generator)
        feature = torch.randn(4, 6, generator=generator)[segment] + 0.5 * torch.randn(480, 24, 6, generator=generator)
        noisy = torch.rand(480, generator=generator)
        ignored = (torch.rand(480, 24, generator=generator) < noisy[:, None].square()) | (noisy > 0.88)[:, None]
        return {"feat": feature, "segment": torch.where(ignored, -1, segment)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.point(batch["feat"])
        whole = x.amax(1, keepdim=True).expand_as(x)
        seg_logits = self.seg_head(torch.cat([x, whole], 2)).flatten(0, 1)
        segment = batch["segment"].flatten()
        if self.guards_empty and bool((segment == -1).all()):
            return 0.0 * seg_logits.sum()
        return functional.cross_entropy(seg_logits, segment, ignore_index=-1)  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class EmptyVolume(Case):
    """A lamp as a field of density and color, whose rays end on white; the density is rectified, and begins at zero.

    Report: github.com/munshisanowarraihan/nerf-meta/issues/3 and 1. Confirmed by the author: with an unlucky
    initialization the rectified density is zero everywhere and nothing is learned; with softplus it is.
    """

    kinds = ("initialization",)
    places = ("relu", "sigma")
    good = 0.02
    softplus = False
    cure = settings(softplus=True)
    cured_by = r"softplus|bias"
    seed = 44
    batch_size = 32
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(14, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.sigma, self.rgb = nn.Linear(48, 1), nn.Linear(48, 3)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18502)
        origin = 2 * torch.rand(1024, 1, generator=generator) - 1
        angle = 0.6 * (torch.rand(1024, 1, generator=generator) - 0.5)
        depth = torch.linspace(0.1, 2.0, 16)
        x, y = origin + depth * angle.sin(), depth * angle.cos() - 1
        inside = x.square() + y.square() < 0.2
        hit = inside.any(1, keepdim=True)
        color = torch.cat([0.8 * torch.ones(1024, 1), 0.3 + 0.3 * origin.abs(), 0.2 * torch.ones(1024, 1)], 1)
        return {"points": torch.stack([x, y], 2), "color": torch.where(hit, color, 1.0)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        points = batch["points"]
        waves = [scale * points for scale in (1.5, 3.0, 6.0)]
        code = torch.cat([points, *(wave.sin() for wave in waves), *(wave.cos() for wave in waves)], 2)
        features = self.trunk(code)
        raw = self.sigma(features)[..., 0]
        density = functional.softplus(raw - 1) if self.softplus else functional.relu(raw)  # fault
        alpha = 1 - (-density * 0.5).exp()
        past = functional.pad((1 - alpha + 1e-10).cumprod(1)[:, :-1], (1, 0), value=1.0)
        weights = alpha * past
        rgb = (weights[..., None] * self.rgb(features).sigmoid()).sum(1)
        return functional.mse_loss(rgb + 1 - weights.sum(1, keepdim=True), batch["color"])


class VertexOfTheFit(Case):
    """Meshes of bodies from pictures; in few of the meshes that were fitted before one vertex is missing.

    Report: github.com/mks0601/I2L-MeshNet_RELEASE/issues/9. Found by the reporter: the losses of the mesh are NaN,
    since the fitted mesh of few pictures has a coordinate that is NaN.
    """

    kinds = ("nonfinite-target",)
    places = ("fit_mesh_img",)
    good = 0.65
    keeps_bad = True
    cure = settings(keeps_bad=False)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"remove|\bdrop\b|mask|filter"
    batch_size = 16
    lr = 2e-3
    steps = 390

    def build(self) -> None:
        self.pose_net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.joint_out = nn.Linear(16 * 25, 8)
        self.mesh_net = nn.Sequential(nn.Linear(16 * 25 + 8, 64), nn.ReLU(), nn.Linear(64, 24))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18503)
        joint = 1.5 + 7 * torch.rand(640, 4, 2, generator=generator)
        rows = torch.arange(10.0)
        y = (rows[:, None] - joint[:, :, :1, None]).square()
        x = (rows - joint[:, :, 1:, None]).square()
        strength = torch.tensor([1.0, 2.0, -1.0, -2.0])[:, None, None]
        image = (strength * (-(x + y) / 2).exp()).sum(1)[:, None]
        between = torch.rand(12, 4, generator=generator).softmax(1)
        mesh = (between @ joint - 5) / 3
        mesh[torch.randperm(640, generator=generator)[:3], 5, 1] = torch.nan
        fields = {"img": image, "fit_mesh_img": mesh, "orig_joint_img": (joint - 5) / 3}
        if self.keeps_bad:
            return fields
        kept = mesh.isfinite().all(2).all(1)
        return {name: field[kept] for name, field in fields.items()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.pose_net(batch["img"])
        joint = self.joint_out(features)
        mesh = self.mesh_net(torch.cat([features, joint], 1)).reshape(-1, 12, 2)
        target = batch["fit_mesh_img"]
        out_edge, true_edge = mesh.diff(dim=1), target.diff(dim=1)
        edge = (out_edge.norm(dim=2) - true_edge.norm(dim=2)).abs().mean()
        true_normal = functional.normalize(true_edge, dim=2).flip(2) * torch.tensor([-1.0, 1.0])
        normal = (functional.normalize(out_edge, dim=2) * true_normal).sum(2).abs().mean()
        fit = functional.l1_loss(mesh, target) + 0.1 * (edge + normal)
        return fit + functional.l1_loss(joint.reshape(-1, 4, 2), batch["orig_joint_img"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
