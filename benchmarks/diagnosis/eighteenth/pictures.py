"""Classes of pictures by margins, capsules and focal losses, and pictures that are made, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SineOfTheMargin(Case):
    """Classes of pictures with a margin between the angles, whose sine is the root of one minus the squared cosine.

    Report: github.com/ktjonsson/keras-ArcFace/issues/2. Solved by the reporter: the loss falls fast, then it is NaN,
    which is gone where what the root is taken of is kept between a small number and one.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 1.5
    eps: float | None = None
    cure = settings(eps=1e-7)
    cured_by = r"clamp|clip|small (?:value|number)|\beps"
    batch_size = 32
    lr = 5e-3
    steps = 500

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.weight = nn.Parameter(torch.randn(10, 2))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18101)
        label = torch.randint(10, (960,), generator=generator)
        image = torch.randn(10, 8, 8, generator=generator)[label] + 0.5 * torch.randn(960, 8, 8, generator=generator)
        return {"image": image, "label": label}

    def arcface(self, embedding: Tensor, label: Tensor) -> Tensor:
        cos_t = functional.normalize(embedding, dim=1) @ functional.normalize(self.weight, dim=1).T
        sin_t2 = 1 - cos_t.square()
        if self.eps is not None:
            sin_t2 = sin_t2.clamp(self.eps, 1.0)
        sin_t = sin_t2.sqrt()  # fault
        margin = torch.tensor(0.5)
        cos_mt = cos_t * margin.cos() - sin_t * margin.sin()
        cos_mt = torch.where(cos_t > (torch.pi - margin).cos(), cos_mt, cos_t - 0.5 * margin.sin())
        return 16 * torch.where(functional.one_hot(label, 10) > 0, cos_mt, cos_t)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.arcface(self.backbone(batch["image"]), batch["label"])
        return functional.cross_entropy(logits, batch["label"])


class CapsulesOfNothing(Case):
    """Digits by capsules with routing, each of which is squashed by its length; some pictures are dark in parts.

    Report: github.com/jindongwang/Pytorch-CapsuleNet/issues/13 and 7. Confirmed by two readers: the squashing divides
    by the root of a squared length that is zero; where the length is a norm it is solved.
    """

    kinds = ("undefined-operation",)
    places = ("div", "sqrt")
    good = 0.15
    uses_norm = False
    cure = settings(uses_norm=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bnorm\b|small (?:value|number)|\beps|clamp"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.conv = nn.Conv2d(1, 16, 3, stride=2, bias=False)
        self.primary = nn.Conv2d(16, 16, 3, bias=False)
        self.W = nn.Parameter(0.1 * torch.randn(32, 4, 6, 8))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(18102)
        label = torch.randint(4, (640,), generator=generator)
        image = torch.randn(4, 13, 13, generator=generator)[label] + 0.6 * torch.randn(640, 13, 13, generator=generator)
        image[torch.randperm(640, generator=generator)[:6], :, :9] = 0.0
        return image[:, None], label

    def squash(self, x: Tensor) -> Tensor:
        if self.uses_norm:
            length = x.norm(dim=-1, keepdim=True)
            return x * length / (1 + length.square())
        squared_norm = x.square().sum(-1, keepdim=True)
        return squared_norm * x / ((1.0 + squared_norm) * squared_norm.sqrt())  # fault

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, label = batch
        u = self.primary(self.conv(image).relu())
        u = self.squash(u.reshape(len(u), 2, 8, 16).permute(0, 1, 3, 2).flatten(1, 2))
        u_hat = torch.einsum("icoj,bij->bico", self.W, u)
        b_ij = torch.zeros(len(u), 32, 4)
        for _ in range(2):
            v = self.squash((b_ij.softmax(2)[..., None] * u_hat).sum(1))
            b_ij = b_ij + (u_hat * v[:, None]).sum(-1).detach()
        length = v.norm(dim=-1)
        present = functional.one_hot(label, 4)
        left, right = (0.9 - length).relu().square(), (length - 0.1).relu().square()
        return (present * left + 0.5 * (1 - present) * right).sum(1).mean()


class FocalRoot(Case):
    """Classes of which few have many pictures, by a focal loss with an exponent of one half.

    Report: github.com/kaidic/LDAM-DRW/issues/17. Found by the reporter: with an exponent of 0.5 the loss is NaN; the
    cross-entropy of an easy picture is zero, and a small number has to be added.
    """

    kinds = ("undefined-operation",)
    places = ("pow",)
    host = "plain"
    good = 0.12
    eps = 0.0
    cure = settings(eps=1e-6)
    cured_by = r"small (?:value|number)|\beps|clamp|relu"
    gamma = 0.5
    batch_size = 32
    lr = 1e-2
    steps = 390

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()
        )
        self.linear = nn.Linear(64, 6)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(18103)
        share = 0.5 ** torch.arange(6.0)
        target = torch.multinomial(share, 960, replacement=True, generator=generator)
        image = torch.randn(6, 8, 8, generator=generator)[target] + 0.6 * torch.randn(960, 8, 8, generator=generator)
        return 12 * image[:, None], target

    def focal_loss(self, input_values: Tensor) -> Tensor:
        p = torch.exp(-input_values)
        return ((1 - p + self.eps) ** self.gamma * input_values).mean()  # fault

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        output = self.linear(self.net(batch[0]))
        return self.focal_loss(functional.cross_entropy(output, batch[1], reduction="none"))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=2e-4)


class LastPictureAlone(Case):
    """Faces by a generator and a judge that looks at the deviation within a batch; the last batch has one picture.

    Report: github.com/ziwei-jiang/PGGAN-PyTorch/issues/1. Found by a reader: of 65 pictures in batches of eight one is
    left, and the deviation of a single number is NaN.
    """

    kinds = ("empty-reduction",)
    places = ("std",)
    host = "plain"
    good = 2.0
    skips_single = False
    cure = settings(skips_single=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"drop_last|at least|unbiased|correction|\bskip"
    batch_size = 8
    lr = 1e-3
    steps = 120

    def build(self) -> None:
        self.gen_net = nn.Sequential(nn.Linear(6, 48), nn.LeakyReLU(0.2), nn.Linear(48, 64), nn.Tanh())
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(12, 16, 3, 2, 1), nn.LeakyReLU(0.2)
        )
        self.final = nn.Sequential(nn.Conv2d(17, 16, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18104)
        rows = torch.arange(8)
        slope = torch.rand(65, 2, 1, 1, generator=generator)
        samples = (slope[:, :1] * rows[:, None] + slope[:, 1:] * rows).sin()
        return {"samples": samples, "latent": torch.randn(65, 6, generator=generator)}

    def minibatch_std(self, x: Tensor) -> Tensor:
        deviation = x.std(0).mean()  # fault
        return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)

    def dis_net(self, x: Tensor) -> Tensor:
        return self.final(self.minibatch_std(self.features(x)))[:, 0]

    def fake(self, latent: Tensor) -> Tensor:
        return self.gen_net(latent).reshape(-1, 1, 8, 8)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        fake = self.dis_net(self.fake(batch["latent"]).detach())
        return functional.softplus(-self.dis_net(batch["samples"])).mean() + functional.softplus(fake).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        if self.skips_single and len(batch["samples"]) == 1:
            return
        dis_optim, gen_optim = optimizers
        dis_optim.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        dis_optim.step()
        gen_optim.zero_grad()
        loss = functional.softplus(-model.dis_net(model.fake(batch["latent"]))).mean()
        watch.loss(loss)
        backward(loss)
        gen_optim.step()

    def configure_optimizers(self) -> Any:
        judge = [*self.features.parameters(), *self.final.parameters()]
        return [
            torch.optim.Adam(judge, lr=self.lr, betas=(0.0, 0.99)),
            torch.optim.Adam(self.gen_net.parameters(), lr=self.lr, betas=(0.0, 0.99)),
        ]
