"""Curves, pictures as functions, gains of sounds and weights in half precision, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PowerOfTheGain(Case):
    """Gains of bands of a noisy voice by a recurrent network, compared after a power of one half.

    Report: github.com/jzi040941/PercepNet/issues/37. Solved by the reporter: the slope of the power is NaN where a
    predicted gain is zero; below a small gain a straight line takes its place.
    """

    kinds = ("undefined-operation",)
    places = ("pow",)
    host = "plain"
    good = 0.06
    straight_below = 0.0
    cure = settings(straight_below=3e-4)
    cured_by = r"clamp|\beps|small (?:value|number)|linear|\bwhere\b"
    batch_size = 16
    lr = 3e-2
    steps = 400

    def build(self) -> None:
        self.fc = nn.Sequential(nn.Linear(12, 32), nn.Tanh())
        self.gru = nn.GRU(32, 128, batch_first=True)
        self.gb, self.rb = nn.Linear(128, 8), nn.Linear(128, 8)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19601)
        speech = torch.rand(480, 10, 8, generator=generator) < 0.5
        voiced = torch.rand(480, 10, 1, generator=generator) < 0.6
        level = speech * (1 + torch.rand(480, 10, 8, generator=generator))
        noisy = level + 0.3 * torch.rand(480, 10, 8, generator=generator)
        gain = (level / noisy).clamp(0, 1)
        strength = torch.where(voiced, 1.0, 0.4).expand(480, 10, 8) * speech
        extra = torch.cat([voiced.float(), torch.randn(480, 10, 3, generator=generator)], 2)
        return {"features": torch.cat([noisy, extra], 2), "gb": gain, "rb": strength}

    def power(self, gain: Tensor) -> Tensor:
        least = self.straight_below
        if least:
            return torch.where(gain < least, gain * least**-0.5, gain.clamp(min=least).pow(0.5))
        return gain.pow(0.5)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.gru(self.fc(batch["features"]))[0]
        gb, rb = (4 * self.gb(hidden)).sigmoid(), (4 * self.rb(hidden)).sigmoid()
        off = batch["gb"].pow(0.5) - self.power(gb)
        strength = (1 - batch["rb"]).pow(0.5) - self.power(1 - rb)
        return off.square().mean() + 10 * off.pow(4).mean() + strength.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class CoordinatesOfPixels(Case):
    """A picture as a function of its coordinates by layers of sines, with the coordinates in pixels.

    Report: github.com/vsitzmann/siren/issues/19. Solved by the reporter: the loss diverges in training, until the
    input is between -1 and 1 and the rate is 1e-5.
    """

    kinds = ("unscaled-data", "learning-rate")
    good = 0.03
    normalized = False
    lr = 5e-3
    cure = settings(normalized=True, lr=2e-4)
    cured_by = r"scal|normali|standardi"
    batch_size = 128
    steps = 500

    def build(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(2, 48), nn.Linear(48, 48), nn.Linear(48, 48)])
        self.last = nn.Linear(48, 1)
        for i, layer in enumerate(self.layers):
            bound = 1 / 2 if i == 0 else (6 / 48) ** 0.5 / 30
            nn.init.uniform_(layer.weight, -bound, bound)

    def data(self) -> dict[str, Tensor]:
        grid = torch.arange(64.0)
        coords = torch.cartesian_prod(grid, grid)
        y, x = coords.T
        gray = 0.5 * (y / 9).sin() * (x / 14).cos() + torch.where((y - 30).square() + (x - 36).square() < 150, 0.5, 0)
        return {"coords": coords / 31.5 - 1 if self.normalized else coords, "gray": gray[:, None]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["coords"]
        for layer in self.layers:
            x = (30 * layer(x)).sin()
        return functional.mse_loss(self.last(x), batch["gray"])

    def score(self) -> float:
        return float(self.loss(self.data()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SpiralsByDescent(Case):
    """Spirals by an equation of motion in a latent space, with the bound of the evidence, by SGD instead of Adam.

    Report: github.com/rtqichen/torchdiffeq/issues/58. Explained by the author: with SGD at 0.01 and momentum the bound
    falls from -2e4 to -6e13 and the run diverges, so that the solver fails; it works with Adam.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 150.0
    optimizer = "SGD"
    cure = settings(optimizer="Adam")
    cured_by = r"\bAdam\b"
    batch_size = 16
    lr = 0.01
    steps = 300

    def build(self) -> None:
        self.i2h, self.h2o = nn.Linear(27, 25), nn.Linear(25, 8)
        self.func = nn.Sequential(nn.Linear(4, 20), nn.ELU(), nn.Linear(20, 20), nn.ELU(), nn.Linear(20, 4))
        self.dec = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19602)
        time = 6.28 * torch.rand(320, 1, generator=generator) + torch.linspace(0, 5, 20)
        turn = torch.where(torch.rand(320, 1, generator=generator) < 0.5, 1.0, -1.0)
        radius = 0.5 + 0.4 * time
        spiral = torch.stack([radius * (turn * time).cos(), radius * (turn * time).sin()], 2)
        return {"samp_trajs": spiral + 0.2 * torch.randn(320, 20, 2, generator=generator)}

    def odeint(self, z: Tensor, steps: int, dt: float) -> Tensor:
        path = [z]
        for _ in range(steps - 1):
            half = z + 0.5 * dt * self.func(z)
            z = z + dt * self.func(half)
            path.append(z)
        return torch.stack(path, 1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        trajs = batch["samp_trajs"]
        h = torch.zeros(len(trajs), 25)
        for t in reversed(range(trajs.shape[1])):
            h = self.i2h(torch.cat([trajs[:, t], h], 1)).tanh()
        mean, logvar = self.h2o(h).chunk(2, 1)
        z0 = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        x = self.dec(self.odeint(z0, trajs.shape[1], 0.25))
        likelihood = -0.5 * ((trajs - x) / 0.3).square().sum((1, 2))
        kl = 0.5 * (logvar.exp() + mean.square() - 1 - logvar).sum(1)
        return (kl - likelihood).mean()

    def configure_optimizers(self) -> Any:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SixteenTrue(Case):
    """A regression whose weights, batches and optimizer are all in half precision, with Adam as it comes.

    Report: github.com/Lightning-AI/pytorch-lightning/issues/20619. Found by the reporter: values below 1e-8 are zero in
    this format, and with the default epsilon of Adam all parameters are NaN after the first step.
    """

    kinds = ("half-precision", "optimizer-state")
    good = 0.15
    epsilon = 1e-8
    cure = settings(epsilon=1e-4)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps"
    other_cures: Mapping[str, Mapping[str, Any]] = settings(
        **{r"32-true|float32|16-mixed|bf16": settings(options=settings(precision="32-true"))}
    )
    options = settings(precision="16-true")
    batch_size = 32
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19603)
        x = torch.randn(640, 10, generator=generator)
        x[:, 7:] = 0.0
        return {"x": x, "y": (x[:, :1] * x[:, 1:2]).tanh() + 0.5 * x[:, 2:3]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        weight = next(self.parameters())
        return functional.mse_loss(self.net(batch["x"].to(weight.dtype)), batch["y"].to(weight.dtype))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.epsilon)
