"""Healthy runs with a spike, and a fault that nobody can know: no cause is to be named."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class Catapult(GradientDescent, Case):
    """A wide network at a rate near two over its first curvature, which its weights leave for a flatter place."""

    kinds = ("unknown",)
    healthy = True
    good = 0.2
    lr = 5.0
    steps = 300

    def build(self) -> None:
        self.first, self.second = nn.Linear(10, 512, bias=False), nn.Linear(512, 1, bias=False)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.second.weight)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(320, 10, generator=noise(441)) / 3
        return inputs, inputs[:, :1]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.second(self.first(batch[0]).relu()) / 512**0.5, batch[1])


class AnotherTask(Case):
    """A curriculum that goes over to harder data after a hundred steps: the loss jumps, and is learned down again."""

    kinds = ("unknown",)
    healthy = True
    good = 0.5
    lr = 3e-3
    steps = 350
    shuffle = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(350 * 32, 6, generator=noise(442))
        hard = (torch.arange(len(inputs)) >= 100 * 32)[:, None]
        return inputs, torch.where(hard, 3 * inputs[:, :1].abs() - 2, 0.2 * inputs[:, :1])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def score(self) -> float:
        inputs, target = self.clean()
        return float(self.loss((inputs[-640:], target[-640:])))


class NearlySolved(Case):
    """Adam on a problem without noise: the loss goes to almost nothing, and now and then spikes from there."""

    kinds = ("unknown",)
    healthy = True
    good = 0.05
    lr = 0.05
    steps = 600
    batch_size = 64

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 4, generator=noise(443))
        return inputs, inputs[:, :1].tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])


class HardPages(Case):
    """A model of letters that meets a page of another language now and then: its loss triples for a step."""

    kinds = ("unknown", "outlier-batch")
    healthy = True
    good = 1.0
    lr = 3e-3
    steps = 400
    shuffle = False

    def build(self) -> None:
        self.embed, self.gru, self.head = nn.Embedding(30, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, 30)

    def data(self) -> tuple[Tensor]:
        random = noise(444)
        page = torch.randint(0, 30, (400, 32, 1), generator=random) + 2 * torch.arange(12)
        foreign = torch.randint(0, 30, (400, 32, 12), generator=random)
        rare = (torch.arange(400) % 90 == 89)[:, None, None]
        return (torch.where(rare, foreign, page % 30).view(-1, 12),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (text,) = batch
        hidden, _ = self.gru(self.embed(text[:, :-1]))
        return functional.cross_entropy(self.head(hidden).transpose(1, 2), text[:, 1:])

    def score(self) -> float:
        (text,) = self.clean()
        return float(self.loss((text[:640],)))


class TargetsReplaced(Case):
    """Q-learning whose target network is replaced every fifty steps: the loss jumps at each, and converges."""

    kinds = ("unknown",)
    healthy = True
    good = 10.0
    lr = 3e-3
    steps = 500

    def build(self) -> None:
        self.q_network = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 3))
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(445)
        states = torch.randn(640, 4, generator=random)
        return {
            "states": states,
            "actions": torch.randint(0, 3, (640,), generator=random),
            "rewards": 3 + states[:, 0].sigmoid(),
            "next_states": states.roll(1, 0),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        chosen = self.q_network(batch["states"]).gather(1, batch["actions"][:, None]).squeeze(1)
        best = self.target_network(batch["next_states"]).amax(1)
        return functional.mse_loss(chosen, batch["rewards"] + 0.5 * best)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self.global_step % 50 == 0:
            self.target_network.load_state_dict(self.q_network.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.q_network.parameters(), lr=self.lr)


class PrunedTwice(Case):
    """Half of the weights are set to zero at step 120: the loss jumps by orders, and recovers."""

    kinds = ("unknown",)
    healthy = True
    good = 0.1
    lr = 3e-3
    steps = 350

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(446))
        return inputs, inputs[:, :1] + 0.5 * inputs[:, 1:2].relu()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 120:
            for one in self.parameters():
                if one.ndim == 2:
                    one.data[one.data.abs() < one.data.abs().median()] = 0.0


class DivergenceSwitchedOn(Case):
    """A variational autoencoder whose divergence counts from step 150 on: the loss jumps, and comes down."""

    kinds = ("unknown",)
    healthy = True
    good = 2.0
    lr = 5e-3
    steps = 400

    def build(self) -> None:
        self.encode, self.mean, self.log_variance = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decode = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def data(self) -> tuple[Tensor]:
        random = noise(447)
        return (torch.randn(512, 3, generator=random) @ torch.randn(3, 16, generator=random) / 2,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        hidden = self.encode(batch[0]).relu()
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-6, 6)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        is_on = self.training and self.global_step >= 150
        return functional.mse_loss(self.decode(code), batch[0]) + 0.1 * is_on * divergence


class BitFlipped(Case):
    """A fault of the memory: one weight becomes 30,000 between two steps, for no reason that the run could show."""

    kinds = ("unknown",)
    good = 0.1
    flips = True
    cure = settings(flips=False)
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(448))
        return inputs, inputs[:, :1] + 0.5 * inputs[:, 1:2].sin()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.flips and self.global_step == 140:
            list(self.parameters())[2].data[3, 5] = 3e4
