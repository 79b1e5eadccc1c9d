"""Pictures and shapes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SolidShape(Case):
    """Shapes from clouds of points, as a union of convex parts that planes bound: the first shape is solid or empty.

    Report: github.com/czq142857/BSP-NET-pytorch/issues/5. Found by the reporter: the limits between zero and one kill
    all gradients; with leaky ones it works. It depends on the numbers of planes and parts, and on the seed.
    """

    kinds = ("initialization", "undefined-operation")
    places = ("clamp",)
    host = "plain"
    good = 0.1
    leak = 0.0
    cure = settings(leak=0.02)
    not_cured_by = (settings(lr=0.05),)
    cured_by = r"leaky|clamp|slope|saturat"
    batch_size = 16
    lr = 1e-3
    steps = 500

    def build(self) -> None:
        self.point, self.encoder = (
            nn.Sequential(nn.Linear(3, 32), nn.LeakyReLU(0.02), nn.Linear(32, 64)),
            nn.Linear(64, 64),
        )
        self.planes = nn.Linear(64, 4 * 64)
        self.convex_layer_weights = nn.Parameter(0.02 * torch.randn(64, 256))
        self.concave_layer_weights = nn.Parameter(1e-5 + 0.02 * torch.randn(256, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(24402)
        half = 0.2 + 0.3 * torch.rand(320, 1, 3, generator=generator)
        cloud = (2 * torch.rand(320, 32, 3, generator=generator) - 1) * half
        points = torch.rand(320, 64, 3, generator=generator) - 0.5
        return {"cloud": cloud, "points": points, "inside": (points.abs() < half).all(2).float()}

    def limited(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1) + self.leak * (x - x.clamp(0, 1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        code = functional.leaky_relu(self.encoder(self.point(batch["cloud"]).amax(1)), 0.02)
        planes = self.planes(code).unflatten(1, (4, 64))
        points = functional.pad(batch["points"], (0, 1), value=1.0)
        h1 = (points @ planes).relu()
        h2 = 1 - self.limited(h1 @ self.convex_layer_weights)  # fault
        h3 = self.limited(h2 @ self.concave_layer_weights)[..., 0]  # fault
        return functional.mse_loss(h3, batch["inside"])


class OneMoreLayer(Case):
    """Handwritten digits by a network of own layers, with one layer more: neither loss nor accuracy move.

    Report: github.com/yizt/numpy_neural_network/issues/1. Found by the author: the scale of the weights at the start,
    a hundredth instead of a thousandth.
    """

    kinds = ("initialization", "depth")
    good = 0.3
    weights_scale = 1e-3
    cure = settings(weights_scale=1e-2)
    not_cured_by = (settings(lr=1.0),)
    cured_by = r"scale of the weights|initiali[sz]"
    batch_size = 16
    lr = 0.05
    steps = 800

    def build(self) -> None:
        self.fc1, self.fc2, self.fc3 = nn.Linear(196, 256), nn.Linear(256, 256), nn.Linear(256, 10)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.normal_(layer.weight, std=self.weights_scale)
            nn.init.zeros_(layer.bias)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24403)
        digits = (torch.rand(10, 196, generator=generator) < 0.2).float()
        label = torch.randint(10, (1600,), generator=generator)
        image = digits[label] + 0.3 * torch.randn(1600, 196, generator=generator)
        return {"image": image.clamp(0, 1), "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.fc2(self.fc1(batch["image"]).relu()).relu()
        return functional.cross_entropy(self.fc3(x), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
