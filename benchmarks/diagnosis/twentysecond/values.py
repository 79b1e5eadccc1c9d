"""Causes, imitations and spikes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class CausesOfAPicture(Case):
    """Thickness and intensity of digits by flows, and the pictures by a decoder, with a rate each.

    Report: github.com/biomedia-mira/deepscm/issues/1. Confirmed by the reporter: the logarithm of the probability of
    the intensity is NaN, and the model trains with a lower rate of the flows.
    """

    kinds = ("learning-rate",)
    good = 2.5
    lr = 0.5
    cure = settings(lr=5e-3)
    batch_size = 64
    steps = 400

    def build(self) -> None:
        self.thickness_loc, self.thickness_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.intensity_net = nn.Sequential(
            nn.Linear(1, 16), nn.LeakyReLU(0.1), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 2)
        )
        self.decoder = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.1), nn.Linear(32, 36))

    def data(self) -> dict[str, Tensor]:
        generator = noise(22601)
        thickness = (0.6 + 0.4 * torch.randn(1280, 1, generator=generator)).exp()
        depends = 2 * thickness - 5 + 0.5 * torch.randn(1280, 1, generator=generator)
        intensity = 64 + 191 * depends.sigmoid()
        grid = torch.arange(36.0)
        picture = intensity / 255 * (-((grid % 6 - 2.5) / thickness).square()).exp()
        return {"thickness": thickness, "intensity": intensity, "x": picture}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        log_thickness = batch["thickness"].log()
        base = (log_thickness - self.thickness_loc) * (-self.thickness_scale).exp()
        log_p_thickness = -0.5 * base.square() - 0.919 - self.thickness_scale - log_thickness
        unit = ((batch["intensity"] - 64) / 191).clamp(1e-4, 1 - 1e-4)
        loc, log_scale = self.intensity_net(log_thickness).chunk(2, 1)
        base = (unit.logit() - loc) * (-log_scale).exp()
        log_p_intensity = -0.5 * base.square() - 0.919 - log_scale - (unit * (1 - unit)).log()
        predicted = self.decoder(torch.cat([log_thickness, unit], 1))
        log_p_x = -50 * (predicted - batch["x"]).square().sum(1, keepdim=True)
        return -(log_p_thickness + log_p_intensity + log_p_x).mean()

    def configure_optimizers(self) -> Any:
        flows = [self.thickness_loc, self.thickness_scale, *self.intensity_net.parameters()]
        groups = [{"params": flows, "lr": self.lr}, {"params": list(self.decoder.parameters()), "lr": 1e-3}]
        return torch.optim.Adam(groups)


class OptimizersOfBothNetworks(Case):
    """A generator and its discriminator: the loss of the first is 0 soon, and that of the second grows.

    Report: github.com/soumith/ganhacks/issues/29. Found by a reader: the optimizers were not limited to the parameters
    of their own network, so that the generator's weakens the discriminator. The list of kinds has none for it; the loss
    of the discriminator grows for ever.
    """

    kinds = ("unknown", "loss-without-floor")
    host = "plain"
    good = 0.25
    of_its_own = False
    cure = settings(of_its_own=True)
    cured_by = r"parameters of (?:the|its|one)|only the|own (?:network|parameters)|two optimizers|both optimizers"
    batch_size = 64
    lr = 1e-3
    steps = 800

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def data(self) -> tuple[Tensor, ...]:
        generator = noise(22602)
        points = torch.tensor([1.5, -1.0]) + 0.4 * torch.randn(1280, 2, generator=generator)
        return points, torch.randn(1280, 4, generator=generator)

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        real, fake = self.discriminator(batch[0]), self.discriminator(self.generator(batch[1]))
        g_loss = functional.softplus(-fake).mean()
        return functional.softplus(-real).mean() + functional.softplus(fake).mean(), g_loss

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        for index, optimizer in enumerate(optimizers):
            loss = model.losses(batch)[index]
            watch.loss(loss)
            self.zero_grad()
            backward(loss)
            optimizer.step()

    def score(self) -> float:
        """The distance of the means, plus that of the deviations, of generated and of real points."""
        real, latent = self.data()
        made = self.generator(latent)
        return float((made.mean(0) - real.mean(0)).norm() + (made.std(0) - real.std(0)).norm())

    def configure_optimizers(self) -> Any:
        networks = [self.discriminator, self.generator] if self.of_its_own else [self, self]
        return [torch.optim.Adam(one.parameters(), lr=self.lr, betas=(0.5, 0.999)) for one in networks]


class Spike(torch.autograd.Function):
    """A spike where the potential is above the threshold, with the slope of a window around it."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward((potential - threshold).abs() < 0.25)
        return (potential > threshold).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (near,) = ctx.saved_tensors
        return gradients[0] * near, None


class NeuronsThatNeverFire(Case):
    """A spiking network of four layers on pictures: the loss does not change, and the accuracy is that of a guess.

    Report: github.com/yjwu17/STBP-for-training-SpikingNN/issues/6. Solved by a reader: the threshold was much too high,
    neurons are dead from the start; with one of about 0.25 it trains.
    """

    kinds = ("initialization",)
    host = "plain"
    good = 0.05
    threshold = 0.75
    cure = settings(threshold=0.25)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"threshold|larger|gain|scale|initiali"
    batch_size = 32
    lr = 2e-3
    steps = 400

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in ((64, 96), (96, 96), (96, 96), (96, 10)))

    def data(self) -> dict[str, Tensor]:
        generator = noise(22603)
        digits = torch.rand(10, 64, generator=generator)
        labels = torch.randint(10, (960,), generator=generator)
        images = (digits[labels] + 0.1 * torch.randn(960, 64, generator=generator)).clamp(0, 1)
        return {"images": images, "labels": functional.one_hot(labels, 10).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        images = batch["images"]
        membranes = [torch.zeros(len(images), width) for width in (96, 96, 96, 10)]
        spikes = [torch.zeros_like(membrane) for membrane in membranes]
        total = torch.zeros(len(images), 10)
        for _ in range(8):
            x = (images > torch.rand_like(images)).float()
            for index, layer in enumerate(self.layers):
                membranes[index] = 0.2 * membranes[index] * (1 - spikes[index]) + layer(x)
                x = spikes[index] = Spike.apply(membranes[index], self.threshold)
            total = total + x
        return functional.mse_loss(total / 8, batch["labels"])
