"""Recognition and generation of pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NoPositivePair(Case):
    """Faces as points, pulled together by pairs of one person and their nearest others that are farther apart.

    Report: github.com/tensorflow/addons/issues/2447. Confirmed by the reporter and a reader: the loss is divided by the
    number of pairs of one person, and a small batch may have none.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 0.35
    guards = False
    cure = settings(guards=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"at least one|\bskip\b|clamp|guard|small (?:value|number)|\beps|empty"
    batch_size = 16
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 32))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(17201)
        person = torch.randint(60, (960,), generator=generator)
        x = torch.randn(60, 24, generator=generator)[person] + 0.3 * torch.randn(960, 24, generator=generator)
        return x, person

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points = functional.normalize(self.embed(batch[0]), dim=1)
        distance = 2 - 2 * points @ points.T
        same = batch[1][:, None] == batch[1]
        farther = (distance[:, None] > distance[:, :, None]) & ~same[:, None]
        others = distance[:, None].expand_as(farther)
        nearest = torch.where(farther, others, torch.inf).amin(2)
        farthest = torch.where(same, -torch.inf, distance).amax(1, keepdim=True)
        negative = torch.where(farther.any(2), nearest, farthest.expand_as(nearest))
        positive = same.float() - torch.eye(len(same))
        number = positive.sum().clamp(min=1.0) if self.guards else positive.sum()
        return ((1.0 + distance - negative).clamp(min=0) * positive).sum() / number  # fault


class LinearAttentionInHalf(Case):
    """Pictures by an attention without a softmax, whose sums over all places are in float16 by autocast.

    Report: github.com/mit-han-lab/efficientvit/issues/110. Confirmed by the author: queries, keys and values were cast
    to float32 before; without this the outputs are NaN.
    """

    kinds = ("half-precision", "forward-overflow")
    places = ("matmul", "bmm", "attention", "div")
    host = "plain"
    good = 0.5
    casts = False
    cure = settings(casts=True)
    not_cured_by = (settings(lr=3e-4),)
    cured_by = r"float32|bfloat16|\.float\(\)"
    batch_size = 16
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.Hardswish(), nn.Conv2d(32, 32, 1))
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.Hardswish(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 6)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(17202)
        label = torch.randint(6, (384,), generator=generator)
        rows = torch.arange(20)
        speed = 0.3 + 0.25 * label[:, None, None]
        phase = 6.28 * torch.rand(384, 1, 1, generator=generator)
        wave = (speed * (rows[:, None] + 0.5 * rows) + phase).sin()
        image = 12 * wave + 3 * torch.randn(384, 20, 20, generator=generator)
        return image[:, None], label

    def relu_linear_att(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        enabled = not self.casts
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            if self.casts:
                q, k, v = q.float(), k.float(), v.float()
            q, k = q.relu(), k.relu()
            v = functional.pad(v, (0, 1), value=1.0)
            out = q @ (k.mT @ v)  # fault
            return out[..., :-1] / (out[..., -1:] + 1e-15)  # fault

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            x = self.stem(batch[0]).flatten(2).mT
            x = x + self.proj(self.relu_linear_att(x))
            x = x + self.mlp(x)
            logits = self.head(x.square().mean(1).sqrt())
        return functional.cross_entropy(logits.float(), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class LonelyVoxel(Case):
    """Clouds of points as voxels, one cloud a batch, whose features are standardized over the voxels that are set.

    Report: github.com/facebookresearch/SparseConvNet/issues/105. Confirmed by the reporter: in a batch of one, batch
    normalization has no deviation for special data, since it divides by zero.
    """

    kinds = ("empty-reduction",)
    places = ("std", "var", "batch_norm")
    good = 0.5
    correction = 1
    cure = settings(correction=0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"unbiased|correction|batch"
    batch_size = 1
    lr = 2e-3
    steps = 600

    def build(self) -> None:
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 32)
        self.gain1, self.gain2 = nn.Parameter(torch.ones(32)), nn.Parameter(torch.ones(32))
        self.out = nn.Linear(64, 4)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17203)
        label = torch.randint(4, (500,), generator=generator)
        count = torch.randint(6, 16, (500,), generator=generator)
        count[torch.randperm(500, generator=generator)[:8]] = 1
        center = 2 * torch.randn(4, 4, generator=generator)[label]
        points = center[:, None] + 0.7 * torch.randn(500, 16, 4, generator=generator)
        return {"points": points, "set": torch.arange(16) < count[:, None], "label": label}

    def batch_norm(self, x: Tensor, gain: Tensor) -> Tensor:
        deviation = x.std(0, correction=self.correction)  # fault
        return gain * (x - x.mean(0)) / (deviation + 1e-4)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        losses = []
        for points, there, label in zip(batch["points"], batch["set"], batch["label"], strict=True):
            first = self.first(points[there])
            x = self.second(self.batch_norm(first, self.gain1).relu())
            x = self.batch_norm(x, self.gain2).relu()
            logits = self.out(torch.cat([x.mean(0), first.mean(0)]))
            losses.append(functional.cross_entropy(logits, label))
        return torch.stack(losses).mean()


class PenaltyOfTheSlope(Case):
    """Digits by a generator and a critic of convolutions, with a penalty on the length of the slope of the critic.

    Report: github.com/pytorch/pytorch/issues/2534. Confirmed by readers: the gradient of the length of a slope that is
    zero is NaN; a small number that is added before the length is taken helps.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "plain"
    good = 1.0
    eps = 0.0
    cure = settings(eps=1e-16)
    cured_by = r"small (?:value|number)|\beps|clamp"
    batch_size = 16
    lr = 1e-2
    steps = 200

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 4), nn.ReLU(), nn.Flatten())
        self.score_of = nn.Linear(8, 1)
        self.draws = noise(17204)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17205)
        image = torch.zeros(640, 1, 8, 8)
        for i, (y, x) in enumerate(torch.randint(0, 5, (640, 2), generator=generator).tolist()):
            image[i, 0, y : y + 3, x] = torch.rand(1, generator=generator)
        image[torch.randperm(640, generator=generator)[:12]] = 0.0
        return {"image": image, "z": torch.randn(640, 8, generator=generator)}

    def judge(self, image: Tensor) -> Tensor:
        return self.score_of(self.critic(image))[:, 0]

    def fake(self, z: Tensor) -> Tensor:
        return self.generator(z).reshape(-1, 1, 8, 8)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        real, fake = batch["image"], self.fake(batch["z"]).detach()
        share = torch.rand(len(real), 1, 1, 1, generator=self.draws)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.judge(between).sum(), between, create_graph=True)
        length = (slope.flatten(1).square().sum(1) + self.eps).sqrt()  # fault
        return self.judge(fake).mean() - self.judge(real).mean() + 10 * (length - 1).square().mean()

    def score(self) -> float:
        with torch.enable_grad():
            return float(self.loss(self.clean()).abs())

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        critic, generator = optimizers
        critic.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        critic.step()
        generator.zero_grad()
        loss = -model.judge(model.fake(batch["z"])).mean()
        watch.loss(loss)
        backward(loss)
        generator.step()

    def configure_optimizers(self) -> Any:
        of_critic = [*self.critic.parameters(), *self.score_of.parameters()]
        return [
            torch.optim.Adam(of_critic, lr=self.lr, betas=(0.5, 0.9)),
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.9)),
        ]


class PixelsByDescent(Case):
    """Pictures with their values as they are stored, by plain descent; adaptive optimizers train the same model.

    Report: github.com/keras-team/keras/issues/18919. Confirmed by two maintainers: the gradient explodes, since plain
    descent does not bear large inputs.
    """

    kinds = ("unscaled-data", "learning-rate")
    good = 0.12
    largest = 255.0
    cure = settings(largest=1.0)
    cured_by = r"scale|standardi|normali|divide"
    batch_size = 32
    lr = 0.05
    steps = 390

    def build(self) -> None:
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(288, 64),
            nn.ReLU(),
            nn.Linear(64, 3),
        )

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(17207)
        place = torch.randint(0, 8, (960, 2), generator=generator)
        level = torch.rand(960, 1, generator=generator)
        image = 0.15 * torch.rand(960, 1, 12, 12, generator=generator)
        for i, (y, x) in enumerate(place.tolist()):
            image[i, 0, y : y + 4, x : x + 4] += 0.2 + 0.6 * level[i]
        return self.largest * image, torch.cat([place / 4 - 0.875, 2 * level - 1], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
