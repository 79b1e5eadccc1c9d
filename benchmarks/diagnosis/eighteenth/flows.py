"""Enlarged pictures, flows between pictures and actions from flows, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class RateWithoutDecay(Case):
    """Pictures are enlarged by residual blocks, by Adam at a rate that stays as it is.

    Report: github.com/jmiller656/EDSR-Tensorflow/issues/50. Solved by the reporter: after thousands of steps the loss
    rises from 1.2 to thousands; with a rate that decays it does not, and ends lower.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 8.0
    lr = 0.02
    decay = 1.0
    cure = settings(decay=0.99)
    cured_by = r"decay|schedule"
    batch_size = 8
    steps = 500

    def build(self) -> None:
        self.head = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(5)
        )
        self.upsample = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(18201)
        rows = torch.arange(16)
        slope = 0.8 * torch.rand(512, 2, 1, 1, generator=generator)
        phase = 6.28 * torch.rand(512, 1, 1, 1, generator=generator)
        high = 128 + 100 * (slope[:, :1] * rows[:, None] + slope[:, 1:] * rows + phase).sin()
        return functional.avg_pool2d(high, 2), high

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        low, high = batch
        first = self.head(low - 128)
        x = first
        for block in self.blocks:
            x = x + block(x)
        return functional.l1_loss(self.upsample(x + first) + 128, high)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= self.decay

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class EndPointError(Case):
    """The flow between two pictures, by the mean length of the difference to the true flow; some pictures have bars.

    Report: github.com/sampepose/flownet2-tf/issues/36. Solved by the reporter: weights and loss are NaN until a small
    number is added inside of the root.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "plain"
    good = 0.6
    eps = 0.0
    cure = settings(eps=1e-4)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"small (?:value|number|term)|\beps|clamp"
    batch_size = 8
    lr = 2e-3
    steps = 390

    def build(self) -> None:
        self.flow_net = nn.Sequential(
            nn.Conv2d(2, 24, 5, padding=2, bias=False),
            nn.LeakyReLU(0.1),
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.LeakyReLU(0.1),
            nn.Conv2d(24, 2, 3, padding=1, bias=False),
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(18202)
        texture = functional.avg_pool2d(torch.randn(480, 1, 20, 20, generator=generator), 3, 1)
        shift = torch.randint(-1, 2, (480, 2), generator=generator)
        first = torch.zeros(480, 1, 14, 14)
        second = torch.zeros(480, 1, 14, 14)
        for i, (dy, dx) in enumerate(shift.tolist()):
            first[i] = texture[i, :, 2:16, 2:16]
            second[i] = texture[i, :, 2 - dy : 16 - dy, 2 - dx : 16 - dx]
        flow = shift[:, :, None, None].expand(-1, -1, 14, 14).float().contiguous()
        bars = torch.randperm(480, generator=generator)[:8]
        for field in (first, second, flow):
            field[bars, :, :7] = 0.0
        return {"input_a": first, "input_b": second, "flow": flow}

    def average_endpoint_error(self, labels: Tensor, predictions: Tensor) -> Tensor:
        squared = (predictions - labels).square().sum(1)
        return (squared + self.eps).sqrt().mean()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = self.flow_net(3 * torch.cat([batch["input_a"], batch["input_b"]], 1))
        return self.average_endpoint_error(batch["flow"], predicted)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ActionsFromFlow(Case):
    """Actions from stacks of flows by a network whose batch normalization is frozen, at the rate for pictures.

    Report: github.com/yjxiong/action-detection/issues/74. Solved by a reader: with flow as input the loss is NaN after
    several iterations at the initial rate, and is not at a tenth of it.
    """

    kinds = ("learning-rate",)
    good = 0.6
    lr = 0.05
    cure = settings(lr=0.005)
    batch_size = 16
    steps = 450

    def build(self) -> None:
        self.base_model = nn.Sequential(
            nn.Conv2d(4, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.activity_fc, self.completeness_fc = nn.Linear(32, 5), nn.Linear(32, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18203)
        label = torch.randint(5, (640,), generator=generator)
        angle = label * 1.2566
        complete = torch.rand(640, generator=generator) < 0.5
        strength = torch.where(complete, 1.5, 0.7)[:, None]
        direction = strength * torch.stack([angle.cos(), angle.sin()], 1)
        flow = torch.cat([direction, direction], 1)[:, :, None, None] + torch.randn(640, 4, 10, 10, generator=generator)
        return {"flow": 2.5 * flow, "label": label, "complete": complete.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        for module in self.base_model:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        features = self.base_model(batch["flow"]).mean((2, 3))
        activity = functional.cross_entropy(self.activity_fc(features), batch["label"])
        complete = self.completeness_fc(features)[:, 0]
        return activity + functional.binary_cross_entropy_with_logits(complete, batch["complete"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
