"""Half precision and its scaling, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class MotionInFloat16(Case):
    """A temporal module over frozen features, converted to float16 as a whole and trained by Adam as it stands."""

    # github.com/jinxixiang/magic_animate_unofficial/issues/6
    kinds = ("half-precision",)
    host = "plain"
    good = 0.5
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = r"float32|bfloat16|\beps"
    not_cured_by = (settings(lr=1e-5),)
    lr = 1e-3
    batch_size = 16

    def build(self) -> None:
        self.inside = nn.Linear(12, 32)
        self.motion = nn.MultiheadAttention(32, 4, batch_first=True)
        self.outside = nn.Linear(32, 12)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(8101)
        frames = torch.randn(320, 1, 12, generator=random) + 0.2 * torch.randn(320, 8, 12, generator=random)
        return frames, torch.randn(320, 8, 12, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        frames, noises = batch
        hidden = self.inside((0.5 * frames + 0.87 * noises).to(self.inside.weight.dtype))
        return functional.mse_loss(self.outside(hidden + self.motion(hidden, hidden, hidden)[0]).float(), noises)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class MapOfACity(Case):
    """Plans of a vehicle under autocast to float16; the elements of the map are added, and their sum overflows."""

    # github.com/motional/nuplan-devkit/issues/91
    kinds = ("half-precision", "forward-overflow")
    places = ("sum", "layer_norm", "native_layer_norm", "norm")
    good = 0.6
    in_half = True
    cure = settings(in_half=False)
    cured_by = "float32|bfloat16|mean"
    lr = 3e-3
    batch_size = 16
    steps = 100

    def build(self) -> None:
        self.element, self.norm, self.head = nn.Linear(4, 32), nn.LayerNorm(32), nn.Linear(32, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(8102)
        number = torch.randint(100, 500, (320, 1), generator=random)
        number[200:220] = 1600
        centre = 300 * torch.rand(320, 1, 2, generator=random) + 60
        points = centre + 20 * torch.randn(320, 1600, 2, generator=random)
        is_there = torch.arange(1600) < number
        features = torch.cat([points, 0.1 * points.flip(2)], 2) * is_there[..., None]
        return {"map": features, "is_there": is_there, "goal": centre[:, 0] / 100}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            elements = self.element(batch["map"]).relu() * batch["is_there"][..., None]
            plan = self.head(self.norm(elements.sum(1)))  # fault
        return functional.mse_loss(plan.float(), batch["goal"])


class MaskOfAMillion(Case):
    """Discrete diffusion of text in float16: the mask token gets minus a million, which is minus infinity there."""

    # github.com/kuleshov-group/mdlm/issues/7
    kinds = ("half-precision", "undefined-operation")
    places = ("mul", "log_softmax")
    good = 2.4
    in_half = True
    cure = settings(in_half=False)
    cured_by = r"float32|bfloat16|clamp|finfo|mask|where|xlogy"
    lr = 5e-3
    steps = 100
    masked = 15

    def build(self) -> None:
        self.words, self.mix = nn.Embedding(16, 32), nn.Linear(8 * 32, 96)
        self.out = nn.Linear(96, 8 * 16)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(8103)
        words = (torch.randint(0, 15, (640, 1), generator=random) + 2 * torch.arange(8)) % 15
        return words, torch.rand(640, 8, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        words, level = batch
        is_masked = level < 0.5
        noisy = words.masked_fill(is_masked, self.masked)
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            scores = self.out(self.mix(self.words(noisy).flatten(1)).relu()).view(-1, 8, 16)
        is_mask = functional.one_hot(torch.tensor(self.masked), 16)
        chances = (scores + is_mask.to(scores.dtype) * -1e6).log_softmax(-1)
        posterior = 0.98 * functional.one_hot(words, 16).to(scores.dtype)
        cross = -(posterior * chances).sum(-1)  # fault
        return (cross * is_masked).sum().float() / is_masked.sum()
