"""Cases of rates, states, networks and goals that were written after the rules had been mended on the other files."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class RestartsAtFullRate(Case):
    """Cosine annealing with restarts, after a first cycle that a warm-up had kept low."""

    kinds = ("learning-rate-jump",)
    good = 0.2
    highest = 0.5
    cure = settings(highest=3e-3)
    cured_by = "schedule|peak"
    lr = 1.0
    steps = 260

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(9, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 1))

    def data(self) -> dict[str, Tensor]:
        weather = torch.randn(640, 9, generator=noise(451))
        return {"weather": weather, "demand": weather[:, :1].abs() + 0.3 * weather[:, 1:2]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch["weather"]), batch["demand"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.NAdam(self.parameters(), lr=self.lr)

        def rate(step: int) -> float:
            cycle = 0.5 + 0.5 * torch.cos(torch.tensor(3.14159 * (step % 120) / 120)).item()
            return (3e-3 if step < 120 else self.highest) * cycle

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class BranchesTwiceAsLarge(GradientDescent, Case):
    """Thirty residual blocks over signals, whose branches double the scale of what they take; no normalization."""

    kinds = ("depth", "initialization")
    good = 0.4
    zeroed = False
    cure = settings(zeroed=True)
    cured_by = "normali|residual|kaiming|smaller|scale"
    lr = 0.01
    steps = 100

    def build(self) -> None:
        self.stem, self.head = nn.Conv1d(2, 16, 3, padding=1), nn.Linear(16, 2)
        self.blocks = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=1) for _ in range(30))
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight)  # type: ignore[arg-type]
            block.weight.data.mul_(0.05 if self.zeroed else 1.4)  # type: ignore[operator]

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(480, 2, 16, generator=noise(452))
        return signal, (signal[:, 0].mean(1) > signal[:, 1].mean(1)).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.stem(batch[0])
        for block in self.blocks:
            hidden = hidden + block(hidden.relu())
        return functional.cross_entropy(self.head(hidden.mean(2)), batch[1])


class StepsBeforeItClears(Case):
    """Gradients are cleared every forty batches, as for an accumulation, and the optimizer steps at each batch."""

    kinds = ("accumulated-gradients",)
    good = 0.4
    clears_after = 40
    cure = settings(clears_after=1)
    cured_by = "zero_grad"
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.automatic_optimization = False
        self.embed = nn.EmbeddingBag(60, 24)
        self.net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))

    def data(self) -> dict[str, Tensor]:
        words = torch.randint(0, 60, (640, 12), generator=noise(454))
        return {"words": words, "topic": torch.stack([(words % 4 == one).sum(1) for one in range(4)], 1).argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(self.embed(batch["words"])), batch["topic"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        if self.global_step % self.clears_after == 0:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)


class MultiplierDescends(Case):
    """A constraint by a multiplier of Lagrange that is lowered with the loss, where it has to be raised against it."""

    kinds = ("loss-without-floor",)
    places = ("multiplier",)
    good = 0.5
    rises = False
    cure = settings(rises=True)
    cured_by = "sign|bound|clamp"
    lr = 0.02
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.multiplier = nn.Parameter(torch.tensor(0.1))

    def data(self) -> dict[str, Tensor]:
        load = torch.randn(640, 6, generator=noise(455))
        return {"load": load, "flow": load[:, :1].sin()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        flow = self.net(batch["load"])
        excess = (flow.square() - 0.1).mean()
        factor = self.multiplier if not self.rises else self.multiplier.detach().clamp(min=0.0)
        return functional.mse_loss(flow, batch["flow"]) + factor * excess

    def score(self) -> float:
        batch = self.clean()
        return float(functional.mse_loss(self.net(batch["load"]), batch["flow"]))


class GrowthInsteadOfDecay(GradientDescent, Case):
    """A weight decay of -2 that a sweep sets in the groups by a slip: the weights grow at each step."""

    kinds = ("optimizer-state",)
    places = ("sgd",)
    good = 0.3
    decay = -2.0
    cure = settings(decay=1e-4)
    other_cures = settings(**{r"weight[_ ]decay": settings(decay=1e-4)})
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(456))
        return inputs, (inputs[:, 0] > inputs[:, 1].abs() - 0.5).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        for group in optimizer.param_groups:
            group["weight_decay"] = self.decay
        return optimizer


class StarOfSevenStates(GradientDescent, Case):
    """Baird's star: linear values of seven states off policy, whose targets come from the values themselves."""

    kinds = ("moving-target",)
    good = 1.5
    discount = 0.99
    cure = settings(discount=0.2)
    cured_by = "slow|follows|huber|bound"
    lr = 0.3
    steps = 600

    def build(self) -> None:
        self.weights = nn.Parameter(torch.tensor([1.0, 1, 1, 1, 1, 1, 10, 1]))

    def data(self) -> dict[str, Tensor]:
        features = torch.zeros(7, 8)
        features[torch.arange(6), torch.arange(6)] = 2.0
        features[:6, 7], features[6, 6], features[6, 7] = 1.0, 1.0, 2.0
        state = torch.randint(0, 7, (640,), generator=noise(457))
        return {"state": features[state], "next_state": features[6].repeat(640, 1), "reward": torch.zeros(640)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        target = batch["reward"] + self.discount * (batch["next_state"] @ self.weights).detach()
        return functional.mse_loss(batch["state"] @ self.weights, target)

    def score(self) -> float:
        return float((self.clean()["state"] @ self.weights).abs().mean()) / 10


class SecondOrderWithoutASearch(Case):
    """LBFGS with its fixed step of one, without a line search: the loss jumps to a million and comes back."""

    kinds = ("unknown", "learning-rate")
    healthy = True
    good = 0.3
    lr = 1.0
    batch_size = 128
    steps = 60

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(458)
        inputs = torch.randn(640, 6, generator=random)
        return inputs, inputs[:, :1] * inputs[:, 1:2].sign() + 0.3 * torch.randn(640, 1, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=self.lr, max_iter=4)


class ClassesThatAppear(GradientDescent, Case):
    """Two classes of four appear after a hundred steps only: the loss jumps to many times what it was, and recovers."""

    kinds = ("unknown",)
    healthy = True
    good = 0.5
    lr = 0.1
    momentum = 0.9
    steps = 300
    shuffle = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(459)
        late = torch.arange(300 * 32) >= 100 * 32
        label = torch.where(
            late, torch.randint(0, 4, late.shape, generator=random), torch.randint(0, 2, late.shape, generator=random)
        )
        return 2.5 * functional.one_hot(label, 10) + torch.randn(len(label), 10, generator=random) / 2, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        inputs, label = self.clean()
        return float(self.loss((inputs[-640:], label[-640:])))
