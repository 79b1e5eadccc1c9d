"""Learning rates, their jumps, optimizer state, and gradients that are not cleared."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def clusters(seed: int, classes: int, width: int, rows: int = 640) -> tuple[Tensor, Tensor]:
    """Return points around centres, and the index of the centre."""
    random = noise(seed)
    centre = 1.2 * torch.randn(classes, width, generator=random)
    label = torch.randint(0, classes, (rows,), generator=random)
    return centre[label] + torch.randn(rows, width, generator=random), label


class StrideOfFive(Case):
    """A plain classifier, gradient descent with momentum, and a learning rate of 5."""

    kinds = ("learning-rate",)
    good = 0.3
    lr = 5.0
    cure = settings(lr=0.02)

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))

    def data(self) -> tuple[Tensor, Tensor]:
        return clusters(51, 6, 10)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TransformerAtHalf(Case):
    """A small transformer encoder with Adam at a learning rate of 0.5."""

    kinds = ("learning-rate",)
    good = 0.7
    lr = 0.5
    cure = settings(lr=2e-3)
    steps = 150

    def build(self) -> None:
        self.words = nn.Embedding(20, 24)
        self.encoder = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(24, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 20, (512, 8), generator=noise(52))
        return words, (words < 5).sum(1).clamp(max=3)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.encoder(self.words(batch[0])).mean(1)), batch[1])


class JustAboveTwoOverCurvature(Case):
    """Linear regression on features that are correlated: the rate is a little above two over the curvature."""

    kinds = ("learning-rate",)
    good = 0.2
    lr = 0.25
    cure = settings(lr=0.02)
    batch_size = 64

    def build(self) -> None:
        self.line = nn.Linear(12, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(53)
        common = torch.randn(640, 1, generator=random)
        features = 0.9 * common + 0.45 * torch.randn(640, 12, generator=random)
        return features, features @ torch.linspace(-0.5, 0.5, 12)[:, None] + 0.1 * torch.randn(640, 1, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.line(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SecondSchedule(Case):
    """A gentle first phase is followed by cosine annealing, which starts at the optimizer's full rate."""

    kinds = ("learning-rate-jump",)
    good = 0.1
    jump = 25.0
    cure = settings(jump=1.0)
    cured_by = "restart|peak|schedule"
    steps = 150
    lr = 0.02

    def build(self) -> None:
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(256, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        image = torch.randn(512, 1, 8, 8, generator=noise(54))
        return image, 4 * image[:, 0, 2:6, 2:6].mean((1, 2))[:, None]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.conv(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        schedules = torch.optim.lr_scheduler
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr * self.jump)
        first = schedules.ConstantLR(optimizer, 1 / self.jump, total_iters=100)
        second = schedules.CosineAnnealingLR(optimizer, 50)
        chain = schedules.SequentialLR(optimizer, [first, second], milestones=[100])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": chain, "interval": "step"}}


class GammaOfFifty(Case):
    """Milestones with gamma=50 where 1/50 was meant."""

    kinds = ("learning-rate-jump",)
    good = 0.3
    gamma = 50.0
    cure = settings(gamma=0.2)
    cured_by = "gamma"
    lr = 0.02
    steps = 130

    def build(self) -> None:
        self.rnn = nn.GRU(3, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(512, 10, 3, generator=noise(55))
        return series, series[:, -3:, 0].sum(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch[0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80], gamma=self.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": steps, "interval": "step"}}


class WarmUpTooShort(Case):
    """A warm-up of thirty steps to a rate that the network does not bear."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.3
    lr = 3.0
    cure = settings(lr=0.1)
    cured_by = "warm"

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(16, 96), nn.LeakyReLU(), nn.Linear(96, 96), nn.LeakyReLU(), nn.Linear(96, 5))

    def data(self) -> tuple[Tensor, Tensor]:
        return clusters(56, 5, 16)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.multi_margin_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, nesterov=True, momentum=0.9)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=30)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": "step"}}


class ForgottenSquares(Case):
    """Weights come from a checkpoint, RMSprop's running squares do not: its first updates are far too large."""

    kinds = ("optimizer-state",)
    good = 0.1
    restore = False
    cure = settings(restore=True)
    cured_by = "state|ckpt_path|resume|warm"
    steps = 12
    lr = 0.03

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
        optimizer = self.optimizer()
        loader = iter(self.loader())
        for step in range(400):
            loader = iter(self.loader()) if step % 20 == 0 else loader
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(next(loader)))
            optimizer.step()
        self.saved = optimizer.state_dict()

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 20, generator=noise(57))
        return inputs, torch.sin(inputs[:, :2].sum(1, keepdim=True))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.net.parameters(), lr=self.lr, alpha=0.999)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer()
        if self.restore:
            optimizer.load_state_dict(self.saved)
        return optimizer


class NoEpsilon(Case):
    """Adam with an epsilon of zero, and an embedding of which each batch touches only some rows."""

    kinds = ("optimizer-state", "undefined-operation")
    places = ("items", "items.weight", "adam")
    good = 0.3
    eps = 0.0
    cure = settings(eps=1e-8)
    cured_by = r"\beps"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.items = nn.Embedding(80, 8)
        self.users = nn.Linear(6, 8)

    def data(self) -> dict[str, Tensor]:
        random = noise(58)
        user, item = torch.randn(640, 6, generator=random), torch.randint(0, 80, (640,), generator=random)
        liking = torch.randn(80, 6, generator=random)[item].mul(user).sum(1).sign().clamp(min=0)
        return {"user": user, "item": item, "liked": liking}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        score = (self.items(batch["item"]) * self.users(batch["user"])).sum(1)
        return functional.binary_cross_entropy_with_logits(score, batch["liked"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)


class NeverCleared(Case):
    """Manual optimization in which zero_grad was forgotten."""

    kinds = ("accumulated-gradients",)
    good = 0.3
    clear = False
    cure = settings(clear=True)
    lr = 0.1
    steps = 200

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.encoder = nn.Linear(14, 48)
        self.decoder = nn.Linear(48, 14)

    def data(self) -> tuple[Tensor]:
        random = noise(59)
        return (torch.randn(640, 4, generator=random) @ torch.randn(4, 14, generator=random) / 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        return functional.mse_loss(self.decoder(torch.relu(self.encoder(batch[0]))), batch[0])

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        if self.clear:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SumOfMicroBatches(Case):
    """Thirty-two micro-batches are accumulated by hand, and their losses are not divided by their number."""

    kinds = ("accumulated-gradients",)
    good = 0.3
    micro = 32
    divide = False
    cure = settings(divide=True)
    cured_by = r"divid|averag|mean|/ ?32"
    batch_size = 128
    lr = 0.3
    steps = 100

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(1280, 9, generator=noise(60))
        return inputs, (inputs[:, :1] * inputs[:, 1:2]).tanh() + inputs[:, 2:3]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        optimizer.zero_grad()
        for inputs, targets in zip(batch[0].chunk(self.micro), batch[1].chunk(self.micro), strict=True):
            loss = self.loss((inputs, targets))
            self.manual_backward(loss / self.micro if self.divide else loss)
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SummedLoss(Case):
    """The loss is summed over 256 samples with a learning rate that suits a mean."""

    kinds = ("accumulated-gradients", "learning-rate")
    good = 0.25
    reduction = "sum"
    cure = settings(reduction="mean")
    cured_by = "mean|averag|divid"
    batch_size = 256
    lr = 0.2
    steps = 80

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 3))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(1280, 11, generator=noise(61))
        return inputs, torch.stack([inputs[:, 0], inputs[:, 1].abs() - 0.8, inputs[:, 2:5].mean(1)], 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1], reduction=self.reduction)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
