"""Generative models: adversaries, denoisers, generators of pictures."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class LogsOfAJudge(Case):
    """Adversaries with a judge that ends in a sigmoid, and logarithms written by hand without an epsilon."""

    # A loss of many tutorials; log(0) once the judge is certain.
    host = "plain"
    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.6
    is_safe = False
    cure = settings(is_safe=True)
    cured_by = r"\beps|clamp|logsigmoid|with_logits|softplus"
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2), nn.Tanh())
        self.judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        return (0.3 * torch.randn(640, 2, generator=noise(741)) + torch.tensor([1.8, -1.2]),)

    def logs(self, made: Tensor, is_real: bool) -> Tensor:
        score = self.judge(made)
        if self.is_safe:
            return functional.logsigmoid(score if is_real else -score).mean()
        chance = score.sigmoid()
        return (chance if is_real else 1 - chance).log().mean()  # fault

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_judge, of_generator = optimizers
        made = 3 * self.generator(torch.randn(len(batch[0]), 3))
        of_judge.zero_grad()
        loss = -self.logs(batch[0], True) - self.logs(made.detach(), False)
        watch.loss(loss)
        backward(loss)
        of_judge.step()
        of_generator.zero_grad()
        loss = -self.logs(made, True)
        watch.loss(loss)
        backward(loss)
        of_generator.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.RMSprop(self.judge.parameters(), lr=30 * self.lr),
            torch.optim.RMSprop(self.generator.parameters(), lr=self.lr),
        ]

    def score(self) -> float:
        made = 3 * self.generator(torch.randn(512, 3, generator=noise(742)))
        return float((made.mean(0) - self.clean()[0].mean(0)).norm())


class Denoiser(nn.Module):
    """A guess of the noise in a point, with a class or without one."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Embedding(4, 8)
        self.net = nn.Sequential(nn.Linear(2 + 1 + 8, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, noisy: Tensor, time: Tensor, kind: Tensor) -> Tensor:
        return self.net(torch.cat([noisy, time, self.classes(kind)], 1))


class GuidedByItself(Case):
    """Guidance is to be distilled into a denoiser, and the teacher is the student itself, without a copy."""

    # Distillation of guided diffusion needs a frozen teacher.
    kinds = ("moving-target",)
    good = 3.0
    copies = False
    cure = settings(copies=True)
    cured_by = "copy|copies"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.student = Denoiser()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False) if self.copies else self.student

    def data(self) -> dict[str, Tensor]:
        random = noise(743)
        kind = torch.randint(1, 4, (640,), generator=random)
        return {"point": kind[:, None] - 2 + 0.3 * torch.randn(640, 2, generator=random), "kind": kind}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        point, kind = batch["point"], batch["kind"]
        time = torch.rand(len(point), 1)
        noisy = (1 - time) * point + time * torch.randn_like(point)
        with torch.no_grad():
            without, with_class = self.teacher(noisy, time, torch.zeros_like(kind)), self.teacher(noisy, time, kind)
            target = with_class + 1.5 * (with_class - without)
        return functional.mse_loss(self.student(noisy, time, kind), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=self.lr, momentum=0.9)

    def score(self) -> float:
        data = self.clean()
        return float(self.student(data["point"], torch.full((640, 1), 0.5), data["kind"]).abs().mean())


class PixelNorm(nn.Module):
    """Features of a pixel over the root of their mean square."""

    def forward(self, features: Tensor) -> Tensor:
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-8)  # fault


class PixelNormInHalf(Case):
    """A generator in float16 whose normalization of pixels has an epsilon of 1e-8, which is zero there."""

    # github.com/pytorch/pytorch/pull/33596, github.com/keras-team/keras/issues/22586 (epsilons in half precision)
    host = "plain"
    kinds = ("half-precision", "undefined-operation")
    places = ("rsqrt", "mul", "generative.py")
    good = 0.35
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = r"float32|bfloat16|\beps"
    lr = 5e-2
    steps = 120

    def build(self) -> None:
        self.grow = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Unflatten(1, (12, 2, 2)), PixelNorm())
        self.paint = nn.Sequential(nn.Upsample(scale_factor=3), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), PixelNorm())
        self.last = nn.Conv2d(8, 1, 1)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        code = torch.randn(480, 6, generator=noise(744))
        return code, functional.interpolate(code[:, :4].view(-1, 1, 2, 2), scale_factor=3).tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = self.last(self.paint(self.grow(batch[0].to(self.last.weight.dtype))))
        return functional.mse_loss(made.float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def draw_weights(module: nn.Module, mean: float) -> None:
    """Draw the weights of a layer as the tutorial of adversaries does for its normalization."""
    if "Conv" in type(module).__name__:
        nn.init.normal_(module.weight, mean, 0.02)  # type: ignore[arg-type]


class WeightsAroundOne(Case):
    """Convolutions get the weights that are meant for normalizations, drawn around one in place of zero."""

    # A slip in copies of the function weights_init of a tutorial.
    kinds = ("initialization",)
    good = 0.45
    mean = 1.0
    cure = settings(mean=0.0)
    cured_by = "around|mean|usual"
    not_cured_by = (settings(lr=1e-5),)
    lr = 2e-3
    steps = 150

    def build(self) -> None:
        self.judge = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Conv2d(16, 3, 3)
        self.apply(lambda module: draw_weights(module, self.mean))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(745)
        kind = torch.randint(0, 3, (480,), generator=random)
        stripes = (torch.arange(12) * (kind[:, None] + 1) * 0.7).sin()
        return stripes[:, None, None] + 0.5 * torch.randn(480, 1, 12, 12, generator=random), kind

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.last(self.judge(batch[0])).flatten(1), batch[1])
