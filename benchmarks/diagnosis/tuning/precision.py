"""Half precision: overflow, underflow, and constants that are zero in it."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class EpsilonOfNothing(Case):
    """Pure float16 weights with Adam's default epsilon, which is zero in float16; some weights have no gradient."""

    kinds = ("half-precision", "optimizer-state")
    good = 0.5
    eps = 1e-8
    cure = settings(eps=1e-4)
    cured_by = r"\beps"
    other_cures = settings(float32=settings(dtype_name="float32"))
    dtype_name = "float16"
    lr = 2e-3

    def build(self) -> None:
        self.words = nn.Embedding(60, 16)
        self.head = nn.Linear(16, 3)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 60, (480, 5), generator=noise(41))
        return words, (words > 30).sum(1).clamp(max=2)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.words(batch[0]).mean(1)).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)


class RoundedAway(Case):
    """Pure bfloat16 weights and a small learning rate: each update is less than half of the last digit of a weight."""

    kinds = ("half-precision",)
    good = 0.4
    dtype_name = "bfloat16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|master|32-true|mixed"
    steps = 400
    batch_size = 64
    lr = 2e-4

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 1))
        nn.init.ones_(self.net[0].bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.net[0].weight.add_(0.5)  # type: ignore[operator]
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 24, generator=noise(42))
        return inputs, inputs[:, :6].sum(1, keepdim=True) / 3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs = batch[0].to(getattr(torch, self.dtype_name))
        return functional.mse_loss(self.net(inputs).float(), batch[1])


class VarianceInHalf(Case):
    """A normalization written by hand: the mean of squares less the square of the mean, of hundreds, in float16."""

    kinds = ("half-precision", "forward-overflow")
    places = ("pow", "square", "mul", "mean", "sub")
    good = 0.4
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16|scale"
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.inside = nn.Linear(8, 32)
        self.out = nn.Linear(32, 1)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        spectrum = 300 + 100 * torch.rand(512, 8, generator=noise(43))
        return spectrum, (spectrum[:, :1] > spectrum[:, 1:2]).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        spectrum = batch[0].to(getattr(torch, self.dtype_name))
        mean = spectrum.mean(1, keepdim=True)
        variance = spectrum.square().mean(1, keepdim=True) - mean.square()  # fault
        hidden = torch.relu(self.inside((spectrum - mean) / torch.sqrt(variance + 1e-3)))
        return functional.binary_cross_entropy_with_logits(self.out(hidden).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=1e-4)


class FixedLossScale(Case):
    """Float16 weights and a loss that the module itself scales by a constant: the gradients overflow."""

    kinds = ("half-precision",)
    good = 0.5
    scale = 2.0**20
    cure = settings(scale=256.0)
    dtype_name = "float16"
    cured_by = r"\bscale"
    other_cures = settings(float32=settings(dtype_name="float32"))
    lr = 0.05

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.conv = nn.Conv1d(2, 8, 3)
        self.head = nn.Linear(8, 2)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(480, 2, 12, generator=noise(44))
        return signal, (signal[:, 0].mean(1) > signal[:, 1].mean(1)).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(
            self.head(self.conv(batch[0].to(self.conv.weight.dtype)).mean(2)).float(), batch[1]
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer, loss = self.torch_optimizer(), self.loss(batch)
        optimizer.zero_grad()
        self.manual_backward(loss * self.scale)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.scale
        optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
