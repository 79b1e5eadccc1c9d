"""Tables, graphs and pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NothingOfAPatient(Case):
    """Regression on scans: of some patients no patch is left, and an empty output is compared with one target."""

    # github.com/mlcommons/GaNDLF/issues/204
    kinds = ("empty-reduction",)
    places = ("mse_loss", "mse", "criterion", "mseloss")
    good = 0.3
    threshold = 0.35
    cure = settings(threshold=-9.0)
    cured_by = r"clamp|filter|\bdrop|at least|skip"
    batch_size = 1
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1), nn.Flatten(0))
        self.criterion = nn.MSELoss()

    def data(self) -> dict[str, Tensor]:
        random = noise(9201)
        patches = 0.5 + torch.rand(240, 6, 12, generator=random)
        patches[[57, 130, 131]] *= 0.1
        return {"patches": patches, "age": patches.mean((1, 2)) * 2 - 2}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        (patches,) = batch["patches"]
        return self.criterion(self.net(patches[patches.mean(1) > self.threshold]), batch["age"])

    def score(self) -> float:
        batch = self.clean()
        made = self.net(batch["patches"].flatten(0, 1)).view(240, 6)
        return float(functional.mse_loss(made, batch["age"][:, None].expand(-1, 6)))


class NeighboursInTheBatch(Case):
    """A contrast over the neighbours of a vertex within the batch; some vertices have none there."""

    # github.com/yanghu819/Graph-MLP/issues/1
    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.6
    least = 0.0
    cure = settings(least=1e-3)
    cured_by = r"clamp|\beps"
    batch_size = 40
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(9202)
        kind = torch.randint(0, 4, (400,), generator=random)
        features = torch.randn(400, 10, generator=random) + 2 * functional.one_hot(kind, 10)
        linked = torch.rand(400, 400, generator=random) < 0.4 * (kind[:, None] == kind)
        return {"features": features, "kind": kind, "row": (linked | linked.T).float(), "number": torch.arange(400)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.net(batch["features"])
        near = functional.normalize(hidden, dim=1)
        similar = (near @ near.T).exp() * (1 - torch.eye(len(near)))
        linked = batch["row"][:, batch["number"]]
        share = (similar * linked).sum(1) / similar.sum(1)
        contrast = -(share + self.least).log().mean()  # fault
        return functional.cross_entropy(self.head(hidden), batch["kind"]) + 0.1 * contrast

    def score(self) -> float:
        batch = self.clean()
        return float(functional.cross_entropy(self.head(self.net(batch["features"])), batch["kind"]))


class NothingButAnomalies(Case):
    """Denoising in small batches whose loss is of the normal pictures only; some batches have none of them."""

    # github.com/HuiZhang0812/DiffusionAD/issues/33
    kinds = ("empty-reduction",)
    places = ("mean",)
    host = "plain"
    good = 1.4
    batch_size = 4
    share = 0.5
    cure = settings(share=0.0)
    cured_by = r"clamp|filter|\bdrop|at least|skip|larger batch|guard"
    lr = 3e-3
    steps = 120

    def build(self) -> None:
        self.denoiser = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))
        self.judge = nn.Conv2d(2, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        random = noise(9203)
        pictures = torch.randn(320, 1, 1, 1, generator=random) + 0.2 * torch.randn(320, 1, 8, 8, generator=random)
        masks = torch.zeros(320, 1, 8, 8)
        masks[:, :, 2:5, 3:6] = (torch.rand(320, 1, 1, 1, generator=random) < self.share).float()
        return {"pictures": pictures + 2 * masks, "masks": masks}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        pictures, masks = batch["pictures"], batch["masks"]
        added = torch.randn(pictures.shape)
        found = self.denoiser(0.7 * pictures + 0.7 * added)
        is_normal = masks.flatten(1).amax(1) == 0
        of_noise = (found - added)[is_normal].square().mean()  # fault
        scores = self.judge(torch.cat([pictures, found.detach()], 1))
        return of_noise + functional.binary_cross_entropy_with_logits(scores, masks)


class PowerMean(Case):
    """Pooling of features of both signs by the root of their mean cube, which can be negative."""

    # A weblog on csdn.net: article/details/111181447 of qq_38507163
    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.4
    least = -1e9
    cure = settings(least=0.0)
    cured_by = r"clamp|\babs|relu"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(3, 24, 3), nn.BatchNorm1d(24))
        self.head = nn.Linear(24, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9204)
        kind = torch.randint(0, 3, (480,), generator=random)
        return torch.randn(480, 3, 20, generator=random) + functional.one_hot(kind, 3)[..., None], kind

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.net(batch[0]).clamp(min=self.least)
        pooled = (features.pow(3).mean(-1) + 1e-6).pow(1 / 3)  # fault
        return functional.cross_entropy(self.head(pooled), batch[1])


class HalfOfX(Case):
    """A line through twenty points from one to twenty with plain gradient descent at a rate of 0.01."""

    # fixeme.com/why-is-my-loss-function-increasing-with-each-epoch (Stack Overflow)
    kinds = ("learning-rate", "unscaled-data")
    host = "plain"
    good = 0.1
    cure = settings(lr=1e-3)
    cured_by = "standardi|normali|divide"
    batch_size = 20
    lr = 0.01

    def build(self) -> None:
        self.dense = nn.Linear(1, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.arange(1.0, 21.0)[:, None]
        return x, x / 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.dense(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class HyperbolicPixels(Case):
    """A variational autoencoder whose decoder ends in a hyperbolic tangent, of which the loss takes the logarithm."""

    # github.com/pkmital/tensorflow_tutorials/issues/23
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 30.0
    activation = "tanh"
    cure = settings(activation="sigmoid")
    cured_by = r"clamp|sigmoid|softplus|positive"
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(36, 48), nn.Softplus(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 48), nn.Softplus(), nn.Linear(48, 36))

    def data(self) -> tuple[Tensor]:
        place = torch.randint(0, 6, (640,), generator=noise(9205))
        return ((torch.arange(36) % 6 == place[:, None]).float(),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        mean, log_spread = self.encoder(batch[0]).chunk(2, 1)
        chance = getattr(torch, self.activation)(self.decoder(mean + log_spread.exp() * torch.randn_like(mean)))
        found = batch[0] * (1e-10 + chance).log() + (1 - batch[0]) * (1e-10 + 1 - chance).log()  # fault
        divergence = 0.5 * (mean.square() + (2 * log_spread).exp() - 2 * log_spread - 1)
        return (divergence.sum(1) - found.sum(1)).mean()


class SpreadAsAnExponent(Case):
    """Two posteriors of a hierarchical autoencoder of speech, compared with spreads that are exponentials."""

    # github.com/LEEYOONHYUNG/BVAE-TTS/issues/8
    kinds = ("forward-overflow", "learning-rate")
    places = ("exp", "div", "pow", "square")
    host = "plain"
    good = 12.0
    activation = "exp"
    cure = settings(activation="softplus")
    cured_by = "softplus|clamp|bound"
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.up = nn.Sequential(nn.Linear(20, 48), nn.LeakyReLU(), nn.Linear(48, 12))
        self.down, self.out = nn.Linear(1, 12), nn.Linear(6, 20)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(9206)
        pitch = torch.rand(640, 1, generator=random)
        return (4 * (pitch * torch.arange(20)).sin() - 5 + 0.1 * torch.randn(640, 20, generator=random)), pitch

    def spread(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw) + 1e-2 if self.activation == "softplus" else raw.exp()  # fault

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mean, raw = self.up(batch[0]).chunk(2, 1)
        prior_mean, prior_raw = self.down(batch[1]).chunk(2, 1)
        spread, prior = self.spread(raw), self.spread(prior_raw)
        made = self.out(mean + spread * torch.randn_like(mean))
        ratio = ((mean - prior_mean).square() + spread.square()) / prior.square()  # fault
        divergence = prior.log() - spread.log() + 0.5 * ratio
        return functional.mse_loss(made, batch[0]) + divergence.sum(1).mean()
