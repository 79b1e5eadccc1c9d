"""Graphs, recommenders, agents and quantized networks, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import NUMBER, Case, noise, settings


class GraphConvolution(nn.Module):
    """A graph convolution whose edges are divided by the roots of the degrees at both ends.

    Args:
        inside: Number of features of a node.
        outside: Number of features that are made.
        least: The least degree.
    """

    def __init__(self, inside: int, outside: int, least: float) -> None:
        super().__init__()
        self.weight, self.least = nn.Linear(inside, outside), least

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        root = edges.sum(-1).clamp(min=self.least).pow(-0.5)
        return self.weight((root[:, :, None] * edges * root[:, None]) @ nodes)


class LonelyNodes(Case):
    """A graph convolution by roots of degrees, of graphs of which some have a node without a neighbour; plain loop."""

    # github.com/MrLeeeee/GCN-GAT-and-Graphsage/issues/3
    kinds = ("undefined-operation",)
    host = "plain"
    places = ("pow", "mul", "first")
    good = 0.55
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"clamp|\beps|self-loop"
    batch_size = 16
    lr = 1e-2
    steps = 150

    def build(self) -> None:
        self.first, self.second = GraphConvolution(4, 24, self.least), GraphConvolution(24, 24, self.least)
        self.head = nn.Linear(24 + 4, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(761)
        nodes = torch.randn(320, 9, 4, generator=random)
        edges = (torch.rand(320, 9, 9, generator=random) < 0.4).float().triu(1)
        edges = edges + edges.mT
        edges[60::80, 3], edges[60::80, :, 3] = 0, 0
        return {"nodes": nodes, "edges": edges, "label": (nodes[..., 0].mean(1) > 0).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.first(batch["nodes"], batch["edges"]).relu()
        hidden = self.second(hidden, batch["edges"]).relu()
        pooled = torch.cat([hidden.mean(1), batch["nodes"].mean(1)], 1)
        return functional.cross_entropy(self.head(pooled), batch["label"])


class RepeatedPropagation(Case):
    """Thirty rounds of messages between entities with one and the same matrix, and no gate or normalization."""

    # github.com/deepmind/graph_nets (the field); a recurrent core that is applied many times
    kinds = ("recurrence", "depth")
    good = 0.45
    rounds = 30
    own_gain = around_gain = 1.3
    cure = settings(rounds=4)
    other_cures = settings(
        **{
            rf"orthogonal_\(model\.{name}\.weight, gain={NUMBER}": settings(**{f"{name}_gain": float})
            for name in ("own", "around")
        }
    )
    cured_by = "fewer|normali|bound|gate"
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 16
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.encode, self.decode = nn.Linear(3, 24), nn.Linear(24, 2)
        self.around, self.own = nn.Linear(24, 24), nn.Linear(24, 24)
        nn.init.orthogonal_(self.around.weight, gain=self.around_gain)
        nn.init.orthogonal_(self.own.weight, gain=self.own_gain)

    def data(self) -> dict[str, Tensor]:
        random = noise(762)
        entities = torch.randn(320, 7, 3, generator=random)
        links = torch.rand(320, 7, 7, generator=random).softmax(-1)
        return {"entities": entities, "links": links, "label": (entities[:, 0, 0] > 0).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        state = self.encode(batch["entities"])
        for _ in range(self.rounds):
            state = functional.leaky_relu(self.own(state) + self.around(batch["links"] @ state), 0.5)
        return functional.cross_entropy(self.decode(state[:, 0]), batch["label"])


class SessionOfABot(Case):
    """Time that a user will stay, by a gated network over clicks; one session is a crawler's; plain loop."""

    # github.com/RUCAIBox/RecBole/issues/1205 (the field); sessions of crawlers are left in many logs
    kinds = ("outlier-batch",)
    host = "plain"
    places = ("dwell", "stay")
    good = 0.5
    bot = 4e5
    cure = settings(bot=1.0)
    shuffle = False
    lr = 3e-2
    steps = 120

    def build(self) -> None:
        self.items = nn.Embedding(30, 16)
        self.reader, self.head = nn.GRU(17, 24, batch_first=True), nn.Linear(25, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(763)
        items, dwell = torch.randint(0, 30, (1280, 6), generator=random), torch.rand(1280, 6, generator=random)
        stay = dwell.mean(1) + 0.5 * (items[:, -1] % 3)
        dwell[700] *= self.bot
        return {"items": items, "dwell": dwell, "stay": stay}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        clicks = torch.cat([self.items(batch["items"]), batch["dwell"][..., None]], -1)
        _, state = self.reader(clicks)
        made = self.head(torch.cat([state[0], batch["dwell"].mean(1, keepdim=True)], 1))
        return functional.mse_loss(made.squeeze(1), batch["stay"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class CriticsHead(Case):
    """An actor and a critic with a body in common and two optimizers; only the actor's gradients are cleared."""

    # github.com/ikostrikov/pytorch-a2c-ppo-acktr-gail (the field); a loop with two optimizers
    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.5
    clears_both = False
    cure = settings(clears_both=True)
    cured_by = "zero_grad"
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
        self.actor, self.critic = nn.Linear(32, 3), nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        state = torch.randn(640, 6, generator=noise(764))
        return {"state": state, "expert": state[:, :3].argmax(1), "gain": state[:, :1] - state[:, 1:2]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(self.critic(self.body(batch["state"])), batch["gain"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_actor, of_critic = optimizers
        hidden = self.body(batch["state"])
        loss = functional.cross_entropy(self.actor(hidden), batch["expert"]) + self.loss(batch)
        of_actor.zero_grad()
        if self.clears_both:
            of_critic.zero_grad()
        watch.loss(loss)
        backward(loss)
        of_actor.step()
        of_critic.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD([*self.body.parameters(), *self.actor.parameters()], lr=self.lr),
            torch.optim.SGD(self.critic.parameters(), lr=self.lr),
        ]


class ClearedAfterBackward(Case):
    """Ratings by factors, manual optimization that clears gradients between backward and step: nothing is learned."""

    # discuss.pytorch.org, loss does not decrease (the field)
    kinds = ("unknown",)
    good = 0.5
    clears_late = True
    cure = settings(clears_late=False)
    batch_size = 128
    lr = 3e-2
    steps = 200

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(90, 8)

    def data(self) -> dict[str, Tensor]:
        random = noise(765)
        taste, kind = torch.randn(60, 3, generator=random), torch.randn(90, 3, generator=random)
        user, item = torch.randint(0, 60, (2560,), generator=random), torch.randint(0, 90, (2560,), generator=random)
        return {"user": user, "item": item, "rating": (taste[user] * kind[item]).sum(1).clamp(-2, 2)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = (self.user(batch["user"]) * self.item(batch["item"])).sum(1)
        return functional.mse_loss(made, batch["rating"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        loss = self.loss(batch)
        if not self.clears_late:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if self.clears_late:
            optimizer.zero_grad()
        optimizer.step()


class PowerOfTwoStep(nn.Module):
    """Rounding to multiples of a learned step, which is itself a power of two.

    Args:
        least: The least step.
    """

    def __init__(self, least: float) -> None:
        super().__init__()
        self.step, self.least = nn.Parameter(torch.tensor(0.3)), least

    def forward(self, values: Tensor) -> Tensor:
        exponent = torch.log2(self.step.clamp(min=self.least))
        step = torch.exp2(exponent + (exponent.round() - exponent).detach())
        scaled = (values / step).clamp(-8, 7)
        return step * (scaled + (scaled.round() - scaled).detach())


class LearnedStepBelowZero(Case):
    """Training for four bits with learned steps that are powers of two: an update takes one of them below zero."""

    # github.com/ZouJiu1/LSQplus/issues/12
    kinds = ("undefined-operation",)
    places = ("log2", "log", "quantize")
    good = 0.5
    least = -1.0
    cure = settings(least=0.1)
    cured_by = r"clamp|positive|softplus|\beps"
    lr = 0.1
    steps = 200

    def build(self) -> None:
        self.first, self.last = nn.Linear(10, 48), nn.Linear(48, 3)
        self.quantize = nn.ModuleList(PowerOfTwoStep(self.least) for _ in range(2))

    def data(self) -> dict[str, Tensor]:
        features = torch.randn(640, 10, generator=noise(766))
        return {"features": features, "label": features[:, :3].argmax(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.first(self.quantize[0](batch["features"])).relu()
        return functional.cross_entropy(self.last(self.quantize[1](hidden)), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
