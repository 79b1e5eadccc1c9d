"""Further runs of Lightning's Trainer, of other models and mechanisms, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class CodeOfNobody(Case):
    """A codebook by moving averages: the sum of a code's vectors by their number, zero for a code that nobody has."""

    kinds = ("undefined-operation", "empty-reduction")
    places = ("div", "codebook")
    good = 0.6
    least = 0.0
    cure = settings(least=1e-3)
    cured_by = "clamp"
    lr = 3e-3
    steps = 200

    codebook: Tensor

    def build(self) -> None:
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(4, 8)
        self.register_buffer("codebook", torch.randn(16, 4))

    def data(self) -> tuple[Tensor]:
        random = noise(541)
        return (torch.randn(5, 8, generator=random)[torch.randint(0, 5, (640,), generator=random)],)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        code = self.encode(batch[0])
        nearest = torch.cdist(code.detach(), self.codebook).argmin(1)
        chosen = functional.one_hot(nearest, 16).to(code.dtype)
        quantized = code + (self.codebook[nearest] - code).detach()
        if self.training:
            mean = chosen.T @ code.detach() / chosen.sum(0)[:, None].clamp(min=self.least)  # fault
            self.codebook.mul_(0.9).add_(mean, alpha=0.1)
        return functional.mse_loss(self.decode(quantized), batch[0])


class TemperatureOfZero(Case):
    """Attributes by a relaxed choice, whose temperature is lowered in steps and is zero after a hundred of them."""

    kinds = ("undefined-operation", "forward-overflow")
    places = ("div", "softmax")
    good = 0.8
    least = 0.0
    cure = settings(least=0.5)
    cured_by = "clamp|eps|away"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.choose, self.answer = nn.Linear(8, 6), nn.Linear(6, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(542))
        return inputs, (inputs[:, 0] > 0).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        temperature = max(self.least, 1 - 0.25 * (self.global_step // 25)) if self.training else 0.5
        scores = self.choose(batch[0])
        spread = -torch.empty_like(scores).exponential_().log()
        choice = ((scores + spread) / temperature).softmax(1)  # fault
        return functional.cross_entropy(self.answer(choice), batch[1])


class FixedPointWithoutAContraction(Case):
    """An implicit layer: one linear map is iterated fifty times towards a fixed point, and is no contraction."""

    kinds = ("recurrence",)
    places = ("inner",)
    good = 0.4
    gain = 1.35
    cure = settings(gain=0.5)
    lr = 1e-3
    steps = 150

    def build(self) -> None:
        self.inside, self.inner, self.out = nn.Linear(6, 24), nn.Linear(24, 24, bias=False), nn.Linear(24, 1)
        nn.init.orthogonal_(self.inner.weight, gain=self.gain)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(543))
        return inputs, inputs[:, :1] - inputs[:, 1:2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        start = self.inside(batch[0])
        state = start
        for _ in range(50):
            state = self.inner(state) + start
        return functional.mse_loss(self.out(state), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


class PartialLikelihood(Case):
    """Proportional hazards: the sum of exp(risk) over all who are still there, of a risk that nothing bounds."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 3.0
    gain = 120.0
    cure = settings(gain=1.0)
    cured_by = "logsumexp|logcumsumexp|clamp|tanh"
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.risk = nn.Sequential(nn.Linear(7, 32), nn.SELU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(544)
        history = torch.randn(640, 7, generator=random)
        time = torch.rand(640, generator=random) * (-history[:, 0]).exp()
        return {"history": history, "time": time, "event": (torch.rand(640, generator=random) < 0.7).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        order = batch["time"].argsort(descending=True)
        risk = self.gain * self.risk(batch["history"][order]).squeeze(1)
        at_risk = torch.exp(risk).cumsum(0)  # fault
        return -((risk - at_risk.log()) * batch["event"][order]).sum() / batch["event"].sum().clamp(min=1)

    def score(self) -> float:
        batch = {name: field[:32] for name, field in self.clean().items()}
        return float(self.loss(batch))


class CountsOfGenes(Case):
    """A negative binomial likelihood of counts with a dispersion by a rectified unit: lgamma has a pole at zero."""

    kinds = ("undefined-operation",)
    places = ("lgamma",)
    good = 2.5
    least = 0.0
    cure = settings(least=0.1)
    cured_by = r"\beps|clamp|softplus|away"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.body, self.mean, self.dispersion = nn.Linear(10, 32), nn.Linear(32, 5), nn.Linear(32, 5)
        nn.init.constant_(self.dispersion.bias, 0.5)

    def data(self) -> dict[str, Tensor]:
        random = noise(545)
        cell = torch.randn(640, 10, generator=random)
        return {"cell": cell, "counts": torch.poisson(cell[:, :5].exp(), generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, counts = self.body(batch["cell"]).relu(), batch["counts"]
        mean = functional.softplus(self.mean(hidden)) + 1e-3
        size = self.dispersion(hidden).relu() + self.least
        ratio = (size + 1e-4) / (size + mean)
        gammas = torch.lgamma(size + counts) - torch.lgamma(size) - torch.lgamma(counts + 1)  # fault
        return -(gammas + (size + 1e-4) * ratio.log() + counts * (1 - ratio).clamp(min=1e-4).log()).mean()


class DirectionOfNothing(Case):
    """Weights as length times direction, of a last layer whose direction starts at zero, as heads often do."""

    kinds = ("undefined-operation", "initialization")
    good = 0.5
    start = 0.0
    cure = settings(start=0.1)
    cured_by = r"\beps|initiali|normal_"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.body, self.direction = nn.Linear(6, 24), nn.Parameter(self.start * torch.randn(24, 3))
        self.length = nn.Parameter(torch.ones(3))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(546))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = self.length * self.direction / self.direction.norm(dim=0)  # fault
        return functional.cross_entropy(self.body(batch[0]).relu() @ weight, batch[1])


class IgnoredPixels(Case):
    """Roads in pictures from above; pixels that are to be ignored hold 255, which a binary loss does not know."""

    kinds = ("target-out-of-range",)
    places = ("road",)
    good = 0.5
    ignored = 255.0
    cure = settings(ignored=0.0)
    cured_by = "mask|ignore"
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        picture = torch.randn(320, 3, 10, 10, generator=noise(547))
        road = (picture[:, :1] > 0.5).float()
        road[:, :, 0] = self.ignored
        return {"picture": picture, "road": road}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch["picture"]), batch["road"])


class StateOfADividedLoss(Case):
    """A run goes on with Adam's state of a loss that was divided by a thousand: its squares are a millionth."""

    kinds = ("optimizer-state",)
    good = 0.003
    divided = True
    cure = settings(divided=False)
    cured_by = "state"
    lr = 0.03
    steps = 120

    def build(self) -> None:
        self.first, self.second, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        inputs, target = self.data()
        self.before = torch.optim.Adam(self.parameters(), lr=5e-3)
        for step in range(400):
            rows = torch.arange(32) + 32 * (step % 20)
            self.before.zero_grad()
            self.loss((inputs[rows], target[rows])).backward()
            self.before.step()

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 16, generator=noise(548))
        return inputs, inputs[:, :1].tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.second(self.first(batch[0]).tanh()).tanh()
        return functional.mse_loss(self.out(hidden), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        state = self.before.state_dict()
        if self.divided:
            for one in state["state"].values():
                one["exp_avg"].div_(1e3)
                one["exp_avg_sq"].div_(1e6)
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        return optimizer


class SixtyLinearMixers(Case):
    """Sixty convolutions over places in a row, without a normalization or a shortcut: each enlarges its input."""

    kinds = ("depth", "initialization")
    good = 0.5
    depth = 60
    cure = settings(depth=2)
    lr = 1e-3
    steps = 120

    def build(self) -> None:
        layers: list[nn.Module] = []
        for _ in range(self.depth):
            layer = nn.Conv1d(8, 8, 3, padding=1)
            nn.init.orthogonal_(layer.weight, gain=1.6)
            layers += [layer, nn.LeakyReLU(0.5)]
        self.net, self.head = nn.Sequential(*layers), nn.Linear(8 * 12, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(640, 8, 12, generator=noise(549))
        return series, (series[:, 0].mean(1) > 0).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.net(batch[0]).flatten(1)), batch[1])


class BaselineOfInformation(Case):
    """A contrastive bound on information whose baseline is learned with a wrong sign: it rises for ever."""

    kinds = ("loss-without-floor",)
    good = 3.0
    sign = -1.0
    cure = settings(sign=1.0)
    cured_by = "sign|bound|clamp|penalty"
    lr = 0.01
    steps = 400

    def build(self) -> None:
        self.left, self.right = nn.Linear(6, 16), nn.Linear(6, 16)
        self.level = nn.Parameter(torch.zeros(()))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(550)
        left = torch.randn(640, 6, generator=random)
        return left, left + 0.3 * torch.randn(640, 6, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores = functional.normalize(self.left(batch[0])) @ functional.normalize(self.right(batch[1])).T * 5
        own = functional.cross_entropy(scores, torch.arange(len(scores)))
        return own + self.sign * (scores.mean().detach() - self.level).square()

    def score(self) -> float:
        return float(self.level.abs())
