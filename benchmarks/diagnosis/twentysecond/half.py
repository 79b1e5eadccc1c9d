"""Models in half precision, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import noise, settings
from benchmarks.diagnosis.nineteenth.language import Scaled


class AdaptersOfAVideoModel(Scaled):
    """Adapters of low rank for a large video model, in mixed precision: the average loss is NaN.

    Report: github.com/kohya-ss/musubi-tuner/issues/26. Found by the reporter: it was float16 instead of bfloat16, and
    works fine with the latter. The frozen model has units whose values are beyond its range.
    """

    kinds = ("half-precision",)
    host = "plain"
    good = 0.35
    dtype = torch.float16
    cure = settings(dtype=torch.bfloat16)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        super().build()
        generator = noise(22101)
        self.img_in, self.norm1, self.norm2 = nn.Linear(32, 48), nn.LayerNorm(48), nn.LayerNorm(48)
        self.gate, self.up, self.down = nn.Linear(48, 96), nn.Linear(48, 96), nn.Linear(96, 48)
        self.proj_out = nn.Linear(48, 32)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.gate.weight[:2] *= 1500
        self.up.weight[:2] *= 1500
        self.down.weight[:, :2] *= 1e-6
        self.lora_down = nn.Parameter(0.1 * torch.randn(8, 48, generator=generator))
        self.lora_up = nn.Parameter(torch.zeros(96, 8))
        self.out_down = nn.Parameter(0.1 * torch.randn(8, 48, generator=generator))
        self.out_up = nn.Parameter(torch.zeros(32, 8))

    def data(self) -> dict[str, Tensor]:
        generator = noise(22102)
        latents = torch.randn(960, 32, generator=generator)
        turn = torch.randn(32, 32, generator=generator) / 32**0.5
        return {"latents": latents, "target": latents @ turn[:, :2] @ torch.randn(2, 32, generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            x = self.img_in(batch["latents"])
            y = self.norm1(x)
            hidden = functional.silu(self.gate(y) + y @ self.lora_down.T @ self.lora_up.T) * self.up(y)
            x = self.norm2(x + self.down(hidden))
            predicted = self.proj_out(x) + x @ self.out_down.T @ self.out_up.T
        target = batch["target"]
        return (predicted.float() - target).square().mean() / target.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)


class LayerThatSums(Scaled):
    """A regression in mixed precision: the scale of the loss falls to its minimum, and the loss is NaN.

    Report: github.com/tensorflow/tensorflow/issues/38357. Found by a reader: the second dense layer serves as a
    reduction over many units; in float32 it causes no NaN, and the scale falls no lower than 4.
    """

    kinds = ("half-precision",)
    places = ("readout", "linear", "addmm", "mm", "matmul")
    host = "plain"
    good = 0.7
    sums_in_half = True
    cure = settings(sums_in_half=False)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 32
    lr = 1e-3
    steps = 400

    def build(self) -> None:
        super().build()
        self.dense, self.readout = nn.Linear(24, 2048), nn.Linear(2048, 1)
        nn.init.ones_(self.readout.weight)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22103)
        x = 1000 * torch.rand(960, 24, generator=generator)
        y = 130 + (x[:, :8].mean(1) - x[:, 8:].mean(1)) / 10
        return {"x": x, "y": y}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            hidden = self.dense(batch["x"]).relu()
            with torch.autocast("cpu", torch.float16, enabled=self.sums_in_half):
                total = self.readout(hidden if self.sums_in_half else hidden.float())  # fault
        return functional.mse_loss(total[:, 0].float() / 2048, batch["y"]) / 150
