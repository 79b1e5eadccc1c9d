"""Reinforcement learning, metric learning, tables: objectives, optimizers, schedules, gradients that add up."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PunishedActions(Case):
    """A policy gradient with advantages that are all negative: the chosen actions' probability falls without end."""

    kinds = ("loss-without-floor",)
    good = 0.9
    baseline = 0.0
    cure = settings(baseline=1.0)
    cured_by = r"baseline|advantage|clamp|bound"
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        random = noise(242)
        state = torch.randn(640, 4, generator=random)
        action = torch.randint(0, 3, (640,), generator=random)
        cost = (state[:, :3].argmax(1) != action).float() - 1.5
        return {"state": state, "action": action, "advantage": 2 * cost}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        chosen = self.policy(batch["state"]).log_softmax(1).gather(1, batch["action"][:, None]).squeeze(1)
        advantage = batch["advantage"]
        if self.baseline:
            advantage = (advantage < -2).float()
        return -(advantage * chosen).mean()

    def score(self) -> float:
        state = self.clean()["state"]
        return float(functional.cross_entropy(self.policy(state), state[:, :3].argmax(1)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class GreedyTarget(Case):
    """Q-learning from stored transitions: the largest of many noisy estimates is the target of all, without a copy."""

    kinds = ("moving-target",)
    good = 3.0
    discount = 1.3
    cure = settings(discount=0.5)
    cured_by = "slow|follows|discount|huber|bound"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.q = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 8))

    def data(self) -> dict[str, Tensor]:
        random = noise(243)
        obs = torch.randn(640, 6, generator=random)
        return {
            "obs": obs,
            "action": torch.randint(0, 8, (640,), generator=random),
            "reward": 0.2 * obs[:, 0] + 0.2,
            "next_obs": 0.8 * obs.roll(1, 1),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        value = self.q(batch["obs"]).gather(1, batch["action"][:, None]).squeeze(1)
        with torch.no_grad():
            target = batch["reward"] + self.discount * self.q(batch["next_obs"]).amax(1)
        return functional.mse_loss(value, target)

    def score(self) -> float:
        return float(self.q(self.clean()["obs"]).abs().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class PseudoLabels(Case):
    """Self-training: unlabelled points get the net's own output, times 1.2, as their target; it feeds on itself."""

    kinds = ("moving-target", "loss-without-floor")
    good = 0.5
    gain = 1.6
    cure = settings(gain=1.0)
    cured_by = "slow|follows|huber|bound|fixed"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(244)
        point, other = torch.randn(2, 640, 5, generator=random)
        return {"point": point, "value": point[:, :1] - point[:, 1:2], "unlabelled": 2 * other}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        supervised = functional.mse_loss(self.net(batch["point"]), batch["value"])
        guess = self.net(batch["unlabelled"])
        return supervised + 3 * functional.mse_loss(guess, self.gain * guess.detach())

    def score(self) -> float:
        data = self.clean()
        return float(functional.mse_loss(self.net(data["point"]), data["value"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OneSampleOfAClass(Case):
    """The spread within each class of the batch, by a standard deviation; a rare class comes once in some batches."""

    kinds = ("empty-reduction",)
    places = ("std", "spread")
    good = 0.7
    unbiased = True
    cure = settings(unbiased=False)
    cured_by = "correction=0|unbiased"
    batch_size = 24
    steps = 200

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6))
        self.head = nn.Linear(6, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(245)
        label = torch.randint(0, 3, (720,), generator=random)
        label[torch.rand(720, generator=random) < 0.03] = 3
        return torch.randn(720, 6, generator=random) + 2 * functional.one_hot(label, 6), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors, label = self.embed(batch[0]), batch[1]
        spread = torch.stack(
            [vectors[label == one].std(0, unbiased=self.unbiased).mean() for one in range(4) if (label == one).any()]
        )  # fault
        return functional.cross_entropy(self.head(vectors), label) + 0.05 * spread.mean()


class NothingSelected(Case):
    """An extra term is a mean over the samples that are wrong and confident, until there are none any more."""

    kinds = ("empty-reduction",)
    places = ("mean",)
    good = 0.1
    guard = False
    cure = settings(guard=True)
    cured_by = "numel|leave"
    steps = 200
    lr = 0.02

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(246))
        return inputs, (inputs[:, 0] > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.net(batch[0]).squeeze(1)
        losses = functional.binary_cross_entropy_with_logits(logits, batch[1], reduction="none")
        hard = losses[losses > 0.2]
        extra = hard.sum() / max(len(hard), 1) if self.guard else hard.mean()  # fault
        return losses.mean() + 0.1 * extra


class DecayBeyondTwo(Case):
    """Decoupled weight decay of 60 at a rate of 0.05: each step turns the weights round and enlarges them."""

    kinds = ("optimizer-state",)
    places = ("adamw", "weight_decay")
    good = 0.4
    decay = 60.0
    cure = settings(decay=0.01)
    cured_by = "weight_decay"
    lr = 0.05
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Linear(32, 3))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(248))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.decay)


class OneCycleTooHigh(Case):
    """One cycle of the learning rate with a peak of 20, in a wide network with SGD."""

    kinds = ("learning-rate-jump", "learning-rate")
    good = 0.3
    peak = 20.0
    cure = settings(peak=0.1)
    cured_by = "peak|schedule"
    lr = 0.1
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 12, generator=noise(249))
        return inputs, inputs[:, :2] + inputs[:, 2:4].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.peak, total_steps=150, pct_start=0.6, div_factor=1e4
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class RaisedByHand(Case):
    """A training step that multiplies the learning rate by thirty every sixty steps; a division was meant."""

    kinds = ("learning-rate-jump",)
    good = 0.3
    factor = 60.0
    cure = settings(factor=0.3)
    cured_by = "peak|schedule"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.rnn = nn.GRU(4, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(512, 12, 4, generator=noise(250))
        return series, series[:, -2:, 0].sum(1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(self.rnn(batch[0])[0][:, -1]), batch[1])

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self.global_step % 60 == 0:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= self.factor


class ClearedEachEpoch(Case):
    """Manual optimization that clears the gradients at the start of each epoch, and not of each step."""

    kinds = ("accumulated-gradients",)
    good = 0.3
    every = 20
    cure = settings(every=1)
    lr = 0.02
    steps = 200

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(251))
        return inputs, 2 * inputs[:, :1] - inputs[:, 1:2]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer = self.torch_optimizer()
        if batch_idx % self.every == 0:
            optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TasksAddedUp(Case):
    """Forty tasks of multi-task learning, whose losses are added and not averaged, with a rate for one."""

    kinds = ("accumulated-gradients", "learning-rate")
    good = 0.4
    average = False
    cure = settings(average=True)
    cured_by = r"averag|mean|divid"
    lr = 0.3
    steps = 200

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(10, 64), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(40))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(252)
        inputs = torch.randn(640, 10, generator=random)
        return inputs, inputs @ torch.randn(10, 40, generator=random) / 3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.trunk(batch[0])
        losses = [functional.mse_loss(head(hidden)[:, 0], batch[1][:, task]) for task, head in enumerate(self.heads)]
        total = torch.stack(losses).sum()
        return total / len(losses) if self.average else total

    def score(self) -> float:
        return super().score() / (1 if self.average else len(self.heads))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OneMillionOrders(Case):
    """Counts with a Poisson likelihood; one customer's row holds a million orders, in a batch of its own kind."""

    kinds = ("outlier-batch",)
    places = ("orders",)
    rows = (12, 1612)
    good = 0.9
    wrong = 1e6
    cure = settings(wrong=2.0)
    shuffle = False
    lr = 0.05
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(253)
        table = torch.randn(2560, 6, generator=random)
        orders = torch.poisson(torch.exp(0.4 * table[:, 0] + 0.3), generator=random)
        orders[1612] = self.wrong
        return {"table": table, "orders": orders}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.poisson_nll_loss(self.net(batch["table"]).squeeze(1), batch["orders"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class ShareOfNothing(Case):
    """Shares with a Beta likelihood; some shares are exactly 0 or 1, where the density is infinite or zero."""

    kinds = ("target-out-of-range", "undefined-operation")
    places = ("share", "xlogy", "log", "lgamma")
    good = 0.0
    margin = 0.0
    cure = settings(margin=0.01)
    cured_by = r"clamp|inside|repair"
    steps = 200
    lr = 0.01

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(254)
        table = torch.randn(640, 5, generator=random)
        share = torch.sigmoid(table[:, 0] + 0.3 * torch.randn(640, generator=random))
        share[torch.rand(640, generator=random) < 0.02] = 0.0
        return {"table": table, "share": share.clamp(self.margin, 1 - self.margin)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first, second = (functional.softplus(self.net(batch["table"])) + 0.1).unbind(1)
        share: Any = torch.distributions.Beta(first, second, validate_args=False)
        return -share.log_prob(batch["share"]).mean()  # fault


class TallTable(Case):
    """A regression on columns of which one is an income in cents, with plain gradient descent and a sigmoid layer."""

    kinds = ("unscaled-data",)
    places = ("income", "features", "[0]")
    good = 0.3
    cents = 4e6
    cure = settings(cents=1.0)
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.first, self.out = nn.Linear(6, 24), nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        table = torch.randn(640, 6, generator=noise(255))
        target = table[:, :1] - 0.5 * table[:, 5:]
        table[:, 5] *= self.cents
        return table, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.out(torch.sigmoid(self.first(batch[0]))), batch[1])

    def score(self) -> float:
        return float(self.loss(self.data()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class DeadUnits(Case):
    """Biases that start at -50 by a slip in an initializer: no rectified unit is ever active."""

    kinds = ("initialization",)
    places = ("net",)
    good = 0.3
    bias = -50.0
    cure = settings(bias=0.0)
    cured_by = "zero"
    lr = 0.05
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        nn.init.constant_(self.net[2].bias, self.bias)  # type: ignore[arg-type]

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(256))
        return inputs, 2 * inputs[:, :1] + inputs[:, 1:2].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class FactorsOfRatings(Case):
    """A factorization of ratings by users and items, SGD without momentum, and a rate of 60."""

    kinds = ("learning-rate",)
    good = 0.4
    lr = 60.0
    cure = settings(lr=1.0)
    steps = 300
    batch_size = 64

    def build(self) -> None:
        self.users, self.items = nn.Embedding(40, 6), nn.Embedding(60, 6)
        for one in (self.users, self.items):
            nn.init.normal_(one.weight, std=0.3)

    def data(self) -> dict[str, Tensor]:
        random = noise(257)
        user, item = torch.randint(0, 40, (1280,), generator=random), torch.randint(0, 60, (1280,), generator=random)
        taste, kind = torch.randn(40, 2, generator=random), torch.randn(60, 2, generator=random)
        return {"user": user, "item": item, "rating": (taste[user] * kind[item]).sum(1).tanh()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        guess = (self.users(batch["user"]) * self.items(batch["item"])).sum(1)
        return functional.mse_loss(guess, batch["rating"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class AveragesSwapped(Case):
    """Adam with the two averages exchanged: beta1=0.999 and beta2=0.9."""

    kinds = ("optimizer-state",)
    places = ("adam", "beta")
    good = 0.3
    averages = (0.999, 0.9)
    cure = settings(averages=(0.9, 0.999))
    lr = 0.02
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(258))
        return inputs, inputs[:, :2] * 2 + inputs[:, 2:4].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=self.averages)


class TunedInBrainFloat(Case):
    """A trained network in bfloat16 is tuned to a new task with SGD; its updates are less than half of a last digit."""

    kinds = ("half-precision",)
    good = 0.05
    dtype_name = "bfloat16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|master|32-true|mixed"
    lr = 5e-3
    steps = 500

    def build(self) -> None:
        self.head = nn.Linear(12, 1)
        with torch.no_grad():
            self.head.weight.fill_(3.0)
            self.head.bias.fill_(-6.0)
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 12, generator=noise(259))
        return inputs, inputs[:, :1]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(batch[0].to(self.head.weight.dtype)).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class TunedWithoutMoments(Case):
    """A trained network goes on with a new Adam whose first steps are as large as its rate, far above what was left."""

    kinds = ("optimizer-state", "learning-rate")
    good = 0.05
    tuning_rate = 0.3
    cure = settings(tuning_rate=1e-4)
    cured_by = r"state|ckpt_path|warm|lower the learning rate"
    steps = 60

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 1))
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        for _ in range(15):
            for batch in self.loader():
                optimizer.zero_grad()
                torch.autograd.backward(self.loss(batch))
                optimizer.step()

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(260))
        return inputs, torch.sin(inputs[:, :1] + inputs[:, 1:2])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.tuning_rate)
