"""Graphs, rotations, policies and generative models: formulas that have no value, or no slope, at one place."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta, Normal
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.diagnosis.case import Case, Rows, noise, settings


class Graphs:
    """Graphs of a batch as one graph.

    Args:
        fields: Its tensors.
    """

    def __init__(self, **fields: Tensor) -> None:
        self.__dict__.update(fields)

    def to(self, *args: Any, **kwargs: Any) -> Graphs:
        """Return the graph on another device."""
        return Graphs(**{name: one.to(*args, **kwargs) for name, one in vars(self).items()})


class LonelyAtom(Case):
    """A mean over the neighbours of each node, by a sum and a degree; a node without an edge has a degree of zero."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 0.45
    least = 0.0
    cure = settings(least=1.0)
    lr = 0.01
    batch_size = 16
    steps = 200

    def build(self) -> None:
        self.own, self.other, self.head = nn.Linear(4, 24), nn.Linear(4, 24), nn.Linear(24, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(421)
        nodes = torch.randn(480, 5, 4, generator=random)
        adjacent = torch.rand(480, 5, 5, generator=random) < 0.75
        adjacent[:, range(5), range(5)] = False
        return nodes, adjacent

    def loader(self) -> DataLoader[Any]:
        order = noise(4210)
        return DataLoader(Rows(self.data()), self.batch_size, shuffle=True, generator=order, collate_fn=self.collate)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> Graphs:
        nodes = torch.cat([one[0] for one in samples])
        edges = torch.cat([one[1].nonzero() + 5 * at for at, one in enumerate(samples)]).T
        label = (torch.stack([one[0][:, 0].mean() for one in samples]) > 0).float()
        return Graphs(x=nodes, edge_index=edges, batch=torch.arange(len(samples)).repeat_interleave(5), y=label)

    def loss(self, batch: Any) -> Tensor:
        source, target = batch.edge_index
        total = torch.zeros_like(batch.x).index_add(0, target, batch.x[source])
        degree = torch.zeros(len(batch.x)).index_add(0, target, torch.ones(len(target)))
        around = total / degree.clamp(min=self.least)[:, None]  # fault
        hidden = torch.relu(self.own(batch.x) + self.other(around))
        pooled = torch.zeros(len(batch.y), 24).index_add(0, batch.batch, hidden) / 5
        return functional.binary_cross_entropy_with_logits(self.head(pooled).squeeze(1), batch.y)

    def score(self) -> float:
        return float(self.loss(self.collate(list(zip(*self.clean(), strict=True)))))


class WeightsOfEdges(Case):
    """Graph attention whose softmax is exp over a sum that is gathered by node, of scores that are not normalized."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.55
    gain = 12.0
    cure = settings(gain=0.2)
    cured_by = "logsumexp|softmax|subtract|tanh"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.query, self.key = nn.Linear(6, 24), nn.Linear(6, 24)
        self.value, self.head = nn.Linear(6, 24), nn.Linear(24, 3)

    def data(self) -> dict[str, Tensor]:
        random = noise(422)
        nodes = 1.5 * torch.randn(480, 6, 6, generator=random)
        return {"nodes": nodes, "label": nodes[:, 0, :3].argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        nodes = batch["nodes"]
        score = self.gain * (self.query(nodes) * self.key(nodes.roll(1, 1))).sum(2)
        weight = torch.exp(score)  # fault
        share = weight / weight.sum(1, keepdim=True)
        hidden = self.value(nodes) + share[..., None] * self.value(nodes.roll(1, 1))
        return functional.cross_entropy(self.head(torch.relu(hidden[:, 0])), batch["label"])


class PoseAtRest(Case):
    """Camera poses as rotation vectors that start at zero: the axis is the vector over its own length."""

    kinds = ("undefined-operation",)
    places = ("div", "norm", "pose")
    good = 0.05
    eps = 0.0
    cure = settings(eps=1e-6)
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.pose = nn.Embedding(8, 3)
        nn.init.zeros_(self.pose.weight)

    def data(self) -> dict[str, Tensor]:
        random = noise(423)
        camera = torch.randint(0, 8, (400,), generator=random)
        point = torch.randn(400, 3, generator=random)
        angle = 0.5 * torch.randn(8, generator=random)[camera]
        seen = torch.stack(
            [
                angle.cos() * point[:, 0] - angle.sin() * point[:, 1],
                angle.sin() * point[:, 0] + angle.cos() * point[:, 1],
                point[:, 2],
            ],
            1,
        )
        return {"camera": camera, "point": point, "seen": seen}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        vector, point = self.pose(batch["camera"]), batch["point"]
        angle = (vector.square().sum(1, keepdim=True) + self.eps).sqrt()
        axis = vector / angle  # fault
        turned = (
            point * angle.cos()
            + torch.linalg.cross(axis, point) * angle.sin()
            + axis * (axis * point).sum(1, keepdim=True) * (1 - angle.cos())
        )
        return functional.mse_loss(turned, batch["seen"])


class RoundEllipsoid(Case):
    """Axes of a learned ellipsoid by its eigenvectors; it starts as a ball, whose eigenvalues are all the same."""

    kinds = ("undefined-operation",)
    places = ("linalg_eigh", "eigh")
    good = 0.6
    spread = 0.0
    cure = settings(spread=0.3)
    cured_by = "identity|small multiple|distinct|noise"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.metric = nn.Parameter(torch.eye(4) + torch.diag(self.spread * torch.arange(4.0)))
        self.head = nn.Linear(4, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(480, 4, generator=noise(424))
        return inputs, (inputs[:, 0] > inputs[:, 1]).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        lengths, axes = torch.linalg.eigh(torch.nan_to_num(self.metric @ self.metric.T))  # fault
        return functional.cross_entropy(self.head(batch[0] @ axes * lengths.sqrt()), batch[1])


class PenaltyOfAFlatCritic(Case):
    """A gradient penalty with the norm as a root of squares; the critic's last layer starts at zero, and is flat."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 3.0
    eps = 0.0
    cure = settings(eps=1e-10)
    lr = 2e-3
    steps = 150

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        nn.init.zeros_(self.critic[2].weight)  # type: ignore[arg-type]

    def data(self) -> dict[str, Tensor]:
        return {"real": torch.randn(640, 2, generator=noise(425)) + torch.tensor([2.0, 0.0])}

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        length = torch.sqrt(slope.square().sum(1) + self.eps)  # fault
        return (length - 1).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        generator, critic = self.torch_optimizer(0), self.torch_optimizer(1)
        real = batch["real"]
        fake = self.generator(torch.randn(len(real), 4))
        critic.zero_grad()
        wrong = self.critic(fake.detach()).mean() - self.critic(real).mean()
        self.manual_backward(wrong + 10 * self.penalty(real, fake.detach()))
        critic.step()
        generator.zero_grad()
        self.manual_backward(-self.critic(self.generator(torch.randn(len(real), 4))).mean())
        generator.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(one.parameters(), lr=self.lr) for one in (self.generator, self.critic)]

    def score(self) -> float:
        return float(self.generator(torch.randn(200, 4, generator=noise(1))).mean(0).sub(torch.tensor([2.0, 0])).norm())


class ActionsAtTheBounds(Case):
    """Behaviour cloning with a beta distribution, whose density has no finite logarithm for actions of 0 and 1."""

    kinds = ("target-out-of-range", "undefined-operation")
    places = ("action", "xlogy", "log", "dirichlet")
    good = 0.0
    margin = 0.0
    cure = settings(margin=1e-3)
    cured_by = r"clamp|inside|repair"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(426)
        state = torch.randn(640, 5, generator=random)
        action = torch.sigmoid(state[:, 0] + 0.3 * torch.randn(640, generator=random))
        action[torch.rand(640, generator=random) < 0.02] = 1.0
        action[torch.rand(640, generator=random) < 0.02] = 0.0
        return {"state": state, "action": action.clamp(self.margin, 1 - self.margin)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first, second = (functional.softplus(self.policy(batch["state"])) + 1).unbind(1)
        return -Beta(first, second, validate_args=False).log_prob(batch["action"]).mean()  # fault


class SpreadBelowZero(Case):
    """A normal policy whose deviation is the plain output of a layer, and comes to be negative."""

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.4
    positive = False
    cure = settings(positive=True)
    cured_by = "softplus|clamp|exp|positive"
    lr = 0.02
    steps = 200
    options = settings(accumulate_grad_batches=2)

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.Tanh())
        self.mean, self.deviation = nn.Linear(32, 1), nn.Linear(32, 1)
        nn.init.constant_(self.deviation.bias, 2.0)

    def data(self) -> dict[str, Tensor]:
        random = noise(427)
        state = torch.randn(640, 4, generator=random)
        return {"state": state, "action": state[:, :1].tanh() + 0.2 * torch.randn(640, 1, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.trunk(batch["state"])
        spread = self.deviation(hidden)
        spread = functional.softplus(spread) + 0.05 if self.positive else spread
        return -Normal(self.mean(hidden), spread, validate_args=False).log_prob(batch["action"]).mean()  # fault


class MixtureFarAway(Case):
    """The density of a mixture as a sum of densities, before its logarithm; far from all means it is zero."""

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 2.1
    stable = False
    cure = settings(stable=True)
    cured_by = "logsumexp|log_softmax|logarithms|clamp"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 9))

    def data(self) -> dict[str, Tensor]:
        random = noise(428)
        inputs = torch.randn(640, 2, generator=random)
        side = torch.randint(0, 2, (640,), generator=random) * 2.0 - 1
        return {"inputs": inputs, "value": side * (4 + 2 * inputs[:, 0]) + 0.1 * torch.randn(640, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        share, mean, log_scale = self.net(batch["inputs"]).chunk(3, 1)
        scale = torch.exp(log_scale.clamp(-4, 4) - 1)
        distance = (batch["value"][:, None] - mean) / scale
        if self.stable:
            each = share.log_softmax(1) - 0.5 * distance.square() - scale.log() - 0.919
            return -torch.logsumexp(each, 1).mean()
        density = share.softmax(1) * torch.exp(-0.5 * distance.square()) / (2.507 * scale)
        return -torch.log(density.sum(1)).mean()  # fault


class TransportBySmallSteps(Case):
    """Optimal transport by scaling a matrix exp(-cost / 0.002), whose rows are zero for far points."""

    kinds = ("undefined-operation", "forward-overflow")
    places = ("div", "reciprocal")
    good = 0.3
    blur = 0.002
    cure = settings(blur=0.3)
    cured_by = "logarithms|logsumexp|larger|away from|clamp"
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.move = nn.Linear(2, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(429)
        source = torch.randn(640, 2, generator=random)
        return {"source": source, "goal": torch.randn(640, 2, generator=random) * 0.5 + 0.5}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        cost = (self.move(batch["source"])[:, None] - batch["goal"][None]).square().sum(2)
        kernel = torch.exp(-cost / self.blur)
        left = torch.ones(len(cost)) / len(cost)
        for _ in range(5):
            right = 1 / (kernel.T @ left) / len(cost)  # fault
            left = 1 / (kernel @ right) / len(cost)  # fault
        return (left[:, None] * kernel * right[None] * cost).sum()


class TwinsInTheDisc(Case):
    """Distances of the hyperbolic disc by acosh, which has no slope at one: some pairs are the same word twice."""

    kinds = ("undefined-operation",)
    places = ("acosh",)
    good = 0.25
    eps = 0.0
    cure = settings(eps=1e-6)
    cured_by = "above one|above 1|inside"
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.words = nn.Embedding(40, 3)
        nn.init.normal_(self.words.weight, std=0.05)

    def data(self) -> dict[str, Tensor]:
        pairs = torch.randint(0, 40, (800, 2), generator=noise(430))
        return {"pairs": pairs, "steps": (pairs[:, 0] % 4 != pairs[:, 1] % 4).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        left, right = (0.9 * torch.tanh(self.words(one)) / 2 for one in batch["pairs"].unbind(1))
        gap, inside = (left - right).square().sum(1), (1 - left.square().sum(1)) * (1 - right.square().sum(1))
        distance = torch.acosh(1 + 2 * gap / inside + self.eps)  # fault
        return functional.mse_loss(distance, batch["steps"])


class PaddingOnly(Case):
    """A sentence is the mean of its words, by a mask and its sum; one review of a corpus is empty."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    rows = (4, 364)
    good = 0.4
    least = 0.0
    cure = settings(least=1.0)
    shuffle = False
    batch_size = 24
    lr = 0.02
    steps = 150

    def build(self) -> None:
        self.words, self.head = nn.Embedding(50, 16, padding_idx=0), nn.Linear(16, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(431)
        ids = torch.randint(1, 50, (480, 8), generator=random)
        length = torch.randint(1, 9, (480,), generator=random)
        length[364] = 0
        mask = torch.arange(8) < length[:, None]
        ids = ids * mask
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": (ids.sum(1) > 25 * length).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"][..., None]
        pooled = (self.words(batch["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=self.least)  # fault
        return functional.binary_cross_entropy_with_logits(self.head(pooled).squeeze(1), batch["labels"])
