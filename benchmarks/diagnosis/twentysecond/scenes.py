"""Scenes and depths, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.case import Case, noise, settings


class DepthOfTheSky(Case):
    """Depths of pictures without measured ones, by a loss of the order of pixels as in an older network's depths.

    Report: github.com/JiawangBian/sc_depth_pl/issues/39. Found by a reader: where the sigmoid is nearly zero the depth
    is the inverse of beta, and the exponential of the difference of two depths is infinite. The training is stable with
    a depth of 88 at most.
    """

    kinds = ("forward-overflow",)
    places = ("exp", "log", "mask_ranking_loss")
    good = 0.5
    beta = 0.01
    cure = settings(beta=1 / 80)
    not_cured_by = (settings(lr=1e-7),)
    cured_by = r"softplus|clamp|logaddexp|log1p|beta"
    batch_size = 16
    lr = 5e-3
    steps = 400

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.dispconv = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(22201)
        horizon = torch.randint(3, 7, (640, 1, 1), generator=generator)
        row = torch.arange(12.0)[:, None]
        depth = torch.where(row <= horizon, 60.0, 12 / (row - horizon).clamp(min=0.2)).expand(640, 12, 12)
        image = 1 / depth.sqrt() + 0.02 * torch.randn(640, 12, 12, generator=generator)
        wrong = torch.rand(640, 12, 12, generator=generator) < 0.01
        moved = torch.where(row <= horizon, 0.0, 1 / depth) + 0.02 * torch.randn(640, 12, 12, generator=generator)
        return {"tgt_img": image[:, None], "moved": moved, "pseudo_depth": torch.where(wrong, 4.0, depth)}

    def depth_net(self, image: Tensor) -> Tensor:
        disp = 10 * self.dispconv(self.encoder(image)).sigmoid()[:, 0] + self.beta
        return 1 / disp

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        depth, pseudo = self.depth_net(batch["tgt_img"]).flatten(1), batch["pseudo_depth"].flatten(1)
        pairs = torch.randint(144, (2, 200))
        a, b = depth[:, pairs[0]], depth[:, pairs[1]]
        ratio = pseudo[:, pairs[0]] / pseudo[:, pairs[1]]
        order = (ratio > 1.15).float() - (ratio < 1 / 1.15).float()
        ranked = (1 + (-order * (a - b)).exp()).log()  # fault
        photo_loss = (1 / depth - batch["moved"].flatten(1)).abs().mean()
        return photo_loss + 0.1 * torch.where(order == 0, 0.01 * (a - b).square() / (a + b), ranked).mean()


class GaussiansThatMove(Case):
    """A scene of points that move with the time, by a network of their offsets: the picture is lost, and stays so.

    Report: github.com/ingra14m/Deformable-3D-Gaussians/issues/29. Solved by the author: the rate is too high; with a
    rate that decays exponentially the training is stable. The loss of the report is 0.49 from step 12000 on; this run
    loses its picture within the first steps.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.06
    decays = False
    cure = settings(decays=True)
    cured_by = r"decay|learning rate|\blr\b"
    batch_size = 16
    lr = 0.05
    steps = 600

    def build(self) -> None:
        generator = noise(22202)
        self.xyz = nn.Parameter(torch.rand(48, 2, generator=generator))
        self.opacity, self.color = nn.Parameter(torch.zeros(48)), nn.Parameter(torch.zeros(48))
        self.deform = nn.Sequential(
            nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def data(self) -> dict[str, Tensor]:
        time = torch.linspace(0, 1, 320)
        angle = 2 * torch.pi * time
        center = 0.5 + 0.28 * torch.stack([angle.cos(), angle.sin()], 1)
        grid = (torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) + 0.5) / 12
        blob = (-80 * (grid - center[:, None]).square().sum(2)).exp()
        table = 0.35 + 0.15 * (5 * grid[:, 0]).sin()
        return {"fid": time[:, None], "image": torch.maximum(0.95 * blob, table)}

    def render(self, time: Tensor) -> Tensor:
        angle = 2 * torch.pi * time[:, None]
        embedded = torch.cat([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos(), time[:, None]], 2)
        inputs = torch.cat([self.xyz.expand(len(time), 48, 2), embedded.expand(-1, 48, 5)], 2)
        xyz = self.xyz + self.deform(inputs)
        grid = (torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) + 0.5) / 12
        weight = (-60 * (grid[:, None] - xyz[:, None]).square().sum(3)).exp() * self.opacity.sigmoid()
        return (weight * self.color.sigmoid()).sum(2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.render(batch["fid"]) - batch["image"]).abs().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        gamma = 0.985 if self.decays else 1.0
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)}


class RendersOfOneColor(Case):
    """A radiance field of an object before a white background, with the rates of the example: all renders are white.

    Report: github.com/google/nerfactor/issues/32. Solved by the reporter: a smaller rate. The renders of this run are
    of one color too, a dark one.
    """

    kinds = ("learning-rate",)
    seed = 1
    good = 0.02
    lr = 0.1
    cure = settings(lr=1e-3)
    batch_size = 64
    steps = 400

    def build(self) -> None:
        widths = [10, 64, 64, 64, 64, 64, 64]
        layers = (nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths))
        self.mlp = nn.Sequential(*layers)
        self.sigma, self.rgb = nn.Linear(64, 1), nn.Linear(64, 3)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22203)
        angle = 2 * torch.pi * torch.rand(1280, generator=generator)
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        across = torch.stack([-angle.sin(), angle.cos()], 1)
        offset = 1.6 * torch.rand(1280, 1, generator=generator) - 0.8
        origin = offset * across - 1.5 * direction
        hit = offset[:, 0].abs() < 0.5
        entry = offset * across - (0.25 - offset.square()).clamp(min=0).sqrt() * direction
        shade = torch.stack([0.5 + entry[:, 0], 0.5 - entry[:, 1], 0.5 + 0 * hit], 1)
        return {"rays_o": origin, "rays_d": direction, "gt_rgb": torch.where(hit[:, None], 0.7 * shade, 1.0)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        depth = torch.linspace(0.6, 2.4, 24)
        points = batch["rays_o"][:, None] + depth[:, None] * batch["rays_d"][:, None]
        waves = torch.cat([scale * points for scale in (2.0, 4.0)], 2)
        x = self.mlp(torch.cat([points, waves.sin(), waves.cos()], 2))
        alpha = 1 - (-self.sigma(x)[..., 0].relu() * 0.08).exp()
        clear = torch.cat([torch.ones(len(points), 1), (1 - alpha + 1e-6).cumprod(1)], 1)
        weight = alpha * clear[:, :-1]
        rgb = (weight[..., None] * self.rgb(x).sigmoid()).sum(1) + 1 - weight.sum(1, keepdim=True)
        return (rgb - batch["gt_rgb"]).square().mean()
