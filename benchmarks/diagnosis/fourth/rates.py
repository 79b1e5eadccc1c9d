"""Learning rates, schedules, states of optimizers and sums of gradients, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class BoxesOfFortyEightWorkers(GradientDescent, Case):
    """A detector with two heads whose rate was multiplied by the 48 workers of another cluster."""

    kinds = ("learning-rate",)
    good = 0.55
    workers = 48
    cure = settings(workers=1)
    momentum = 0.9
    lr = 0.02
    batch_size = 16
    steps = 160

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())
        self.box, self.object = nn.Linear(32 * 16, 4), nn.Linear(32 * 16, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(401)
        corner = torch.randint(0, 6, (480, 2), generator=random)
        images = 0.3 * torch.randn(480, 1, 10, 10, generator=random)
        there = torch.rand(480, generator=random) < 0.7
        for row, (y, x) in enumerate(corner.tolist()):
            images[row, 0, y : y + 4, x : x + 4] += 2.0 * there[row]
        boxes = torch.cat([corner, corner + 4], 1).float() / 10
        return {"image": images, "boxes": boxes, "is_object": there.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.body(batch["image"]).flatten(1)
        objects = functional.binary_cross_entropy_with_logits(self.object(features).squeeze(1), batch["is_object"])
        return functional.smooth_l1_loss(self.box(features), batch["boxes"]) * 4 + objects

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr * self.workers, momentum=self.momentum)


class CoordinateField(Case):
    """A network of sines that learns an image by its coordinates, with RMSprop at a hundred times the usual rate."""

    kinds = ("learning-rate",)
    good = 0.1
    lr = 0.1
    cure = settings(lr=3e-4)
    batch_size = 256
    steps = 250

    def build(self) -> None:
        self.first, self.second, self.third = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        place = 2 * torch.rand(2048, 2, generator=noise(402)) - 1
        return place, torch.sin(4 * place[:, :1]) * torch.cos(3 * place[:, 1:])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.sin(6 * self.first(batch[0]))
        return functional.mse_loss(self.third(torch.sin(self.second(hidden))), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class SignDescent(torch.optim.Optimizer):
    """An optimizer of a user's own: the sign of an average of gradients, as Lion takes it."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "beta": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    mean = self.state[one].setdefault("mean", torch.zeros_like(one))
                    mean.lerp_(one.grad, 1 - group["beta"])
                    one.add_(mean.sign(), alpha=-group["lr"])
        return loss


class SignsAtTheRateOfAnother(Case):
    """Updates by sign, of an optimizer of the user's own, with the rate of gradient descent."""

    kinds = ("learning-rate",)
    good = 0.4
    lr = 0.1
    cure = settings(lr=1e-3)
    steps = 200

    def build(self) -> None:
        self.embed = nn.Embedding(50, 32)
        self.body = nn.Sequential(nn.Linear(32 * 6, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 50))

    def data(self) -> dict[str, Tensor]:
        start = torch.randint(0, 50, (640, 1), generator=noise(403))
        words = (start + 3 * torch.arange(7)) % 50
        return {"context": words[:, :6], "next": words[:, 6]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.body(self.embed(batch["context"]).flatten(1)), batch["next"])

    def configure_optimizers(self) -> Any:
        return SignDescent(self.parameters(), lr=self.lr)


class Orthogonalized(torch.optim.Optimizer):
    """An optimizer of a user's own: momentum whose matrices are replaced by the nearest orthogonal ones."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for one in group["params"]:
                mean = self.state[one].setdefault("mean", torch.zeros_like(one))
                mean.mul_(group["momentum"]).add_(one.grad)
                update = mean
                if one.ndim == 2:
                    left, _, right = torch.linalg.svd(mean.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
                    update = left @ right
                one.add_(update, alpha=-group["lr"])
        return loss


class OrthogonalUpdatesAtThree(Case):
    """Orthogonalized updates of a small attention model without a normalization, at a rate of three."""

    kinds = ("learning-rate",)
    good = 1.0
    lr = 3.0
    cure = settings(lr=0.02)
    steps = 150

    def build(self) -> None:
        self.embed = nn.Linear(8, 32)
        self.query, self.key, self.value = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.head = nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randn(512, 10, 8, generator=noise(404))
        return tokens, tokens[:, :, 0].amax(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.embed(batch[0])
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / 32**0.5
        hidden = hidden + scores.softmax(2) @ self.value(hidden)
        return functional.mse_loss(self.head(hidden.mean(1)), batch[1])

    def configure_optimizers(self) -> Any:
        return Orthogonalized(self.parameters(), lr=self.lr)


class LossInSquareMillimetres(GradientDescent, Case):
    """A loss that is multiplied by a million for a readable log, with the learning rate of before."""

    kinds = ("learning-rate",)
    good = 0.2
    factor = 1e6
    cure = settings(factor=1.0)
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        joints = torch.rand(640, 6, generator=noise(405))
        return {"joints": joints, "place": torch.stack([joints[:, :2].sum(1), joints[:, 2], joints[:, 3]], 1) - 0.5}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["joints"]), batch["place"]) * self.factor

    def score(self) -> float:
        return super().score() / self.factor


class AveragedAtFullRate(GradientDescent, Case):
    """Averaging of weights that anneals the rate to its own one, which is 20 for 0.02."""

    kinds = ("learning-rate-jump",)
    good = 0.4
    averaging_rate = 20.0
    cure = settings(averaging_rate=0.02)
    cured_by = "schedule|peak"
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 20, generator=noise(406))
        return inputs, inputs[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        self.averaging = torch.optim.swa_utils.SWALR(optimizer, swa_lr=self.averaging_rate, anneal_epochs=3)
        return optimizer

    def on_train_epoch_end(self) -> None:
        if self.current_epoch >= 4:
            self.averaging.step()


class PlateauRaisesTheRate(Case):
    """A rule of the user's own for plateaus that divides the rate by 0.05 in place of multiplying by it."""

    kinds = ("learning-rate-jump",)
    good = 0.1
    divides = True
    cure = settings(divides=False)
    cured_by = "schedule|peak"
    lr = 2e-3
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        self.best, self.epochs_without = float("inf"), 0

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 5, generator=noise(407))
        return inputs, (inputs[:, :1] * inputs[:, 1:2]).tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            value = float(self.loss(self.data()))
        self.epochs_without = 0 if value < 0.9 * self.best else self.epochs_without + 1
        self.best = min(self.best, value)
        if self.epochs_without >= 2:
            self.epochs_without = 0
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group["lr"] / 0.05 if self.divides else group["lr"] * 0.05


class RateOfTheConfiguration(GradientDescent, Case):
    """A run that goes on after its decay: restoring it sets the rate of the configuration, without its warm-up."""

    kinds = ("learning-rate-jump",)
    good = 0.35
    restored = 8.0
    cure = settings(restored=0.01)
    cured_by = "schedule|peak"
    lr = 8.0
    momentum = 0.9
    steps = 220

    def build(self) -> None:
        self.body = nn.Sequential(nn.Conv1d(3, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 24, 5, padding=2), nn.ReLU())
        self.head = nn.Linear(24 * 20, 3)

    def data(self) -> dict[str, Tensor]:
        signal = torch.randn(640, 3, 20, generator=noise(408))
        return {"signal": signal, "label": signal[:, :, :4].sum(2).argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.body(batch["signal"]).flatten(1)), batch["label"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)

        def rate(step: int) -> float:
            return 0.02 * 0.98**step if step < 140 else self.restored / self.lr

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"},
        }


class WarmUpWithoutAnEnd(Case):
    """A linear warm-up that was meant by epoch and has no end: it is stepped at each batch."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.8
    interval = "step"
    cure = settings(interval="epoch")
    cured_by = "schedule|peak"
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.embed = nn.Linear(6, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(409))
        return inputs, inputs.square().sum(1, keepdim=True) / 3 - 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.embed(batch[0])
        for layer in self.layers:
            hidden = hidden + functional.gelu(layer(hidden))
        return functional.mse_loss(self.head(hidden), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 1.0 + count)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class DecayOfForty(GradientDescent, Case):
    """Weight decay of 40 in gradient descent with momentum, where 40e-5 was meant."""

    kinds = ("optimizer-state",)
    places = ("sgd",)
    good = 0.4
    decay = 45.0
    cure = settings(decay=4e-4)
    other_cures = settings(**{r"weight[_ ]decay": settings(decay=4e-4)})
    lr = 0.1
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(410))
        return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.decay)


class MomentumOfAScaledLoss(GradientDescent, Case):
    """Restored momentum of gradients that were a hundred thousand times as large, from the time of a scaled loss."""

    kinds = ("optimizer-state",)
    places = ("sgd", "momentum", "state")
    good = 0.3
    scale = 1e5
    cure = settings(scale=1.0)
    cured_by = "state"
    lr = 0.05
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(411))
        return inputs, inputs[:, :1] - 0.5 * inputs[:, 1:2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        random = noise(412)
        for one in self.parameters():
            optimizer.state[one]["momentum_buffer"] = 0.02 * self.scale * torch.randn(one.shape, generator=random)
        return optimizer


class SquaresStoredInHalf(Case):
    """A run goes on with weights and state that were stored in float16, in which all running squares became zero."""

    kinds = ("optimizer-state", "half-precision")
    places = ("adam", "state")
    good = 0.02
    keeps_squares = False
    cure = settings(keeps_squares=True)
    cured_by = "state"
    lr = 5e-3
    steps = 25

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.before = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        inputs, target = self.data()
        for step in range(400):
            rows = torch.arange(32) + 32 * (step % 20)
            self.before.zero_grad()
            self.loss((inputs[rows], target[rows])).backward()
            self.before.step()

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(413))
        return inputs, inputs[:, :1].sin() + 0.5 * inputs[:, 1:2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        optimizer.load_state_dict(self.before.state_dict())
        for one in optimizer.state.values() if not self.keeps_squares else ():
            one["exp_avg_sq"] = (1e-4 * one["exp_avg_sq"]).half().float()
        return optimizer


class AdamWithoutARoot(torch.optim.Optimizer):
    """An Adam of a user's own that forgets the root of the running squares."""

    def __init__(self, parameters: Any, lr: float, has_root: bool) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-8, "has_root": has_root})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is None:
                    continue
                state = self.state[one]
                state["count"] = state.get("count", 0) + 1
                mean = state.setdefault("mean", torch.zeros_like(one)).lerp_(one.grad, 0.1)
                square = state.setdefault("square", torch.zeros_like(one)).lerp_(one.grad.square(), 0.01)
                size = square / (1 - 0.99 ** state["count"])
                size = size.sqrt() if group["has_root"] else size
                one.addcdiv_(mean / (1 - 0.9 ** state["count"]), size + group["eps"], value=-group["lr"])
        return loss


class OwnAdam(Case):
    """An Adam that was written by hand, in which the root of the running squares is missing."""

    kinds = ("optimizer-state", "learning-rate", "unknown")
    good = 0.2
    has_root = False
    cure = settings(has_root=True)
    cured_by = r"torch\.optim"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 7, generator=noise(414))
        return inputs, inputs[:, :1] * (inputs[:, 1:2] > 0)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return AdamWithoutARoot(self.parameters(), self.lr, self.has_root)


class ForgottenEachEpoch(Case):
    """A training function that creates Adam anew at each epoch, with a rate whose first steps undo what was learned."""

    kinds = ("optimizer-state",)
    good = 0.05
    forgets = True
    cure = settings(forgets=False)
    cured_by = "state"
    lr = 0.03
    batch_size = 64
    steps = 305

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 4, generator=noise(415))
        return inputs, inputs[:, :1] + inputs[:, 1:2].sin()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_epoch_start(self) -> None:
        if self.forgets:
            self.trainer.optimizers[0].state.clear()


class ChunksAddedUp(Case):
    """An LSTM over long recordings in thirty chunks; each calls backward, and one step follows them all."""

    kinds = ("accumulated-gradients",)
    good = 0.35
    averages = False
    cure = settings(averages=True)
    cured_by = "divide|averag|mean"
    lr = 0.6
    batch_size = 16
    steps = 80

    def build(self) -> None:
        self.automatic_optimization = False
        self.cell, self.head = nn.LSTM(3, 24, batch_first=True), nn.Linear(24, 1)

    def data(self) -> dict[str, Tensor]:
        signal = torch.randn(160, 120, 3, generator=noise(416))
        return {"signal": signal, "level": (signal[:, :, :1] + signal[:, :, 1:2]).tanh()}

    def chunks(self, batch: dict[str, Tensor]) -> Any:
        state = None
        for signal, level in zip(batch["signal"].split(4, 1), batch["level"].split(4, 1), strict=True):
            hidden, state = self.cell(signal, state)
            state = tuple(one.detach() for one in state)
            yield functional.mse_loss(self.head(hidden), level)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(self.chunks(batch))).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        optimizer.zero_grad()
        for one in self.chunks(batch):
            self.manual_backward(one / 30 if self.averages else one)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class HeadClearedAlone(Case):
    """Manual optimization that clears the gradients of the head only, since the body was frozen once."""

    kinds = ("accumulated-gradients",)
    good = 0.4
    clears_all = False
    cure = settings(clears_all=True)
    cured_by = "zero_grad"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.automatic_optimization = False
        self.body = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 16, generator=noise(417))
        return inputs, (inputs[:, :3].abs()).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        (self if self.clears_all else self.head).zero_grad()
        loss = self.loss(batch)
        self.log("loss", loss)
        self.manual_backward(loss)
        self.torch_optimizer().step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SumOfAllCells(GradientDescent, Case):
    """A reconstruction error written by hand, which is summed over all cells of a grid and all samples of a batch."""

    kinds = ("accumulated-gradients", "learning-rate")
    good = 0.6
    takes_mean = False
    cure = settings(takes_mean=True)
    cured_by = "mean|averag|divid"
    lr = 0.05
    steps = 150

    def build(self) -> None:
        self.encode, self.decode = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def data(self) -> tuple[Tensor]:
        return (functional.avg_pool2d(torch.randn(320, 1, 14, 14, generator=noise(418)), 3, 1) * 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        error = (self.decode(self.encode(batch[0]).relu()) - batch[0]) ** 2
        return error.mean() if self.takes_mean else error.sum()

    def score(self) -> float:
        (inputs,) = self.clean()
        return float((self.decode(self.encode(inputs).relu()) - inputs).square().mean())
