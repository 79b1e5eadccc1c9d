"""Generators of pictures and of links, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings

BLANK = (27, 160, 311, 480)


class BlankImages(Case):
    """Holes in pictures are filled by a generator and a critic; pictures are scaled by their least and largest value.

    Report: github.com/avalonstrel/GatedConvolution_pytorch/issues/27. Found by the reporter: where these two are equal
    the input is NaN; some images of the data were blank.
    """

    kinds = ("nonfinite-input",)
    places = ("image",)
    rows = BLANK
    host = "plain"
    good = 0.32
    keeps_blank = True
    cure = settings(keeps_blank=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"blank|constant|images"
    batch_size = 32
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.netG = nn.Sequential(
            nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 64), nn.Tanh()
        )
        self.netD = nn.Sequential(nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(15301)
        wave = torch.arange(8) * (0.3 + torch.rand(512, 1, generator=generator))
        image = (wave[:, :, None] + wave[:, None] + 3 * torch.rand(512, 1, 1, generator=generator)).sin()
        image[list(BLANK)] = 0.5
        low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        image = 2 * (image - low) / (high - low) - 1
        mask = torch.zeros(512, 8, 8)
        corner = torch.randint(0, 5, (512, 2), generator=generator).tolist()
        for i, (y, x) in enumerate(corner):
            mask[i, y : y + 4, x : x + 4] = 1.0
        keep = torch.ones(512, dtype=torch.bool)
        keep[list(BLANK)] = self.keeps_blank
        return {"image": image[keep].flatten(1), "mask": mask[keep].flatten(1)}

    def fill(self, batch: dict[str, Tensor]) -> Tensor:
        image, mask = batch["image"], batch["mask"]
        return image * (1 - mask) + mask * self.netG(torch.cat([image * (1 - mask), mask], 1))

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        opt_g, opt_d = optimizers
        image, mask = batch["image"], batch["mask"]
        complete = self.fill(batch)
        opt_d.zero_grad()
        pred_pos, pred_neg = (self.netD(torch.cat([x, mask], 1)) for x in (image, complete.detach()))
        d_loss = (1 - pred_pos).relu().mean() + (1 + pred_neg).relu().mean()
        watch.loss(d_loss)
        backward(d_loss)
        opt_d.step()
        opt_g.zero_grad()
        g_loss = (complete - image).abs().mean() - 0.005 * self.netD(torch.cat([complete, mask], 1)).mean()
        watch.loss(g_loss)
        backward(g_loss)
        opt_g.step()

    def score(self) -> float:
        data = self.clean()
        return float((self.fill(data) - data["image"]).abs().sum() / data["mask"].sum())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.netG.parameters(), lr=self.lr, betas=(0.5, 0.9)),
            torch.optim.Adam(self.netD.parameters(), lr=self.lr, betas=(0.5, 0.9)),
        ]


class RainWithoutRest(Case):
    """Rain is taken out of pictures by a generator that is applied again and again, with a discriminator.

    Report: github.com/MaybeShewill-CV/attentive-gan-derainnet/issues/1. Confirmed by a reader: the losses of a changed
    network become NaN; with the rates of DCGAN for both networks it trains.
    """

    kinds = ("learning-rate",)
    good = 0.12
    lr = 0.1
    cure = settings(lr=2e-3)
    batch_size = 32
    steps = 300

    def build(self) -> None:
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16 * 25, 1)
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(15302)
        clean = functional.interpolate(torch.randn(384, 1, 3, 3, generator=generator), size=(10, 10), mode="bilinear")
        rain = 1.5 * (torch.rand(384, 1, 10, 10, generator=generator) < 0.15).float()
        return {"rainy": clean + rain, "clean": clean}

    def derain(self, rainy: Tensor) -> Tensor:
        image = rainy
        for _ in range(3):
            image = image + self.generator(torch.cat([image, rainy], 1))
        return image

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        g_optimizer, d_optimizer = self.torch_optimizer(0), self.torch_optimizer(1)
        derained = self.derain(batch["rainy"])
        real, fake = self.discriminator(batch["clean"]), self.discriminator(derained.detach())
        d_loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        d_optimizer.zero_grad()
        self.manual_backward(d_loss)
        d_optimizer.step()
        g_loss = functional.mse_loss(derained, batch["clean"])
        g_loss = g_loss + 0.01 * functional.softplus(-self.discriminator(derained)).mean()
        g_optimizer.zero_grad()
        self.manual_backward(g_loss)
        g_optimizer.step()

    def score(self) -> float:
        data = self.clean()
        return float(functional.mse_loss(self.derain(data["rainy"]), data["clean"]))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.999)),
        ]


class LinksOfHubs(Case):
    """Links of a graph by a variational autoencoder; hubs have many neighbors, over which features are summed.

    Report: github.com/pyg-team/pytorch_geometric/issues/500. Confirmed and fixed: the logarithm of the variance is not
    limited, and its exponential overflows; it is cut off above.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.9
    max_logvar = float("inf")
    cure = settings(max_logvar=5.0)
    cured_by = r"clamp|limit|cut"
    seed = 1
    batch_size = 128
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.conv1 = nn.Linear(16, 32)
        self.conv_mu, self.conv_logvar = nn.Linear(32, 8), nn.Linear(32, 8)
        generator = noise(15303)
        group = torch.randint(4, (1000,), generator=generator)
        features = torch.randn(4, 16, generator=generator)[group] + 0.5 * torch.randn(1000, 16, generator=generator)
        adjacency = (
            torch.rand(1000, 1000, generator=generator) < torch.where(group[:, None] == group, 0.03, 0.003)
        ).float()
        adjacency[:3, torch.rand(1000, generator=generator) < 0.95] = 1.0
        adjacency = torch.maximum(adjacency, adjacency.T).fill_diagonal_(1.0)
        self.register_buffer("x", features)
        self.register_buffer("adj", adjacency)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15304)
        linked = self.adj.nonzero()
        source = torch.cat([linked, torch.randint(1000, linked.shape, generator=generator)])
        return {"edge": source, "label": self.adj[source[:, 0], source[:, 1]]}

    def encode(self) -> tuple[Tensor, Tensor]:
        hidden = (self.adj @ self.conv1(self.x)).relu()
        return self.conv_mu(hidden), self.conv_logvar(hidden).clamp(max=self.max_logvar)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mu, logvar = self.encode()
        std = logvar.exp()  # fault
        z = mu + torch.randn_like(std) * std if self.training else mu
        score = (z[batch["edge"][:, 0]] * z[batch["edge"][:, 1]]).sum(1)
        recon_loss = functional.binary_cross_entropy_with_logits(score, batch["label"])
        kl_loss = -0.5 * (1 + 2 * logvar - mu.square() - std.square()).sum(1).mean()
        return recon_loss + kl_loss / 1000

    def score(self) -> float:
        data = self.clean()
        mu, _ = self.encode()
        found = (mu[data["edge"][:, 0]] * mu[data["edge"][:, 1]]).sum(1)
        return float(functional.binary_cross_entropy_with_logits(found, data["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
