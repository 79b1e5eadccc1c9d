"""Molecules, items, services and columns, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class EndpointsNotMeasured(Case):
    """Several properties of molecules by attention between bonded atoms; not every property is measured for each.

    Report: github.com/OpenADMET/openadmet-models/issues/242. Found by the reporter: the losses of the graph attention
    are NaN because the targets are, where a property is missing; these have to be masked.
    """

    kinds = ("nonfinite-target",)
    places = ("y", "targets")
    good = 0.3
    masks = False
    cure = settings(masks=True)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 32
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.lin, self.att = nn.Linear(5, 24), nn.Linear(48, 1)
        self.ffn = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        generator = noise(20401)
        kind = torch.randint(5, (640, 6), generator=generator)
        bonds = (torch.rand(640, 6, 6, generator=generator) < 0.4).float()
        bonds = ((bonds + bonds.transpose(1, 2)) > 0) | torch.eye(6, dtype=torch.bool)
        effect = torch.randn(5, 3, generator=generator)
        y = effect[kind].sum(1) / 3
        missing = torch.rand(640, 3, generator=generator) < torch.tensor([0.0, 0.2, 0.3])
        return {"x": functional.one_hot(kind, 5).float(), "bonds": bonds, "y": y.masked_fill(missing, torch.nan)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        h = self.lin(batch["x"])
        pair = torch.cat([h[:, :, None].expand(-1, 6, 6, 24), h[:, None].expand(-1, 6, 6, 24)], 3)
        e = functional.leaky_relu(self.att(pair)[..., 0], 0.2).masked_fill(~batch["bonds"], -1e9)
        out = self.ffn(functional.elu(e.softmax(2) @ h + h).mean(1) * 2)
        y = batch["y"]
        if self.masks:
            return functional.mse_loss(out[~y.isnan()], y[~y.isnan()])
        return functional.mse_loss(out, y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DifferenceInTheLogarithm(Case):
    """Items for users by embeddings that are smoothed over a graph, with a loss of pairs of items.

    Report: github.com/tanatosuu/GDE/pull/2. Found by the author of the change: the loss is NaN with the pairwise loss,
    since the logarithm is of the difference of the scores; the sigmoid of the definition was missing.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.45
    takes_sigmoid = False
    cure = settings(takes_sigmoid=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"sigmoid|softplus"
    batch_size = 64
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.user_embed, self.item_embed = nn.Embedding(40, 16), nn.Embedding(50, 16)
        for table in (self.user_embed, self.item_embed):
            nn.init.xavier_normal_(table.weight)
        liked = self.liked()
        degree = liked.sum(1, keepdim=True) * liked.sum(0)
        self.register_buffer("adjacency", liked / degree.clamp(min=1).sqrt())

    def liked(self) -> Tensor:
        generator = noise(20402)
        taste = torch.randn(40, 4, generator=generator) @ torch.randn(4, 50, generator=generator)
        return (taste > 1.5).float()

    def data(self) -> dict[str, Tensor]:
        generator = noise(20403)
        liked = self.liked()
        user, pos = liked.nonzero().T
        chosen = torch.randint(len(user), (1920,), generator=generator)
        user, pos = user[chosen], pos[chosen]
        nega = torch.multinomial(1 - liked[user], 1, generator=generator)[:, 0]
        return {"u": user, "p": pos, "nega": nega}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        users, items = self.user_embed.weight, self.item_embed.weight
        final_user, final_item = users + self.adjacency @ items, items + self.adjacency.T @ users
        user, pos, nega = final_user[batch["u"]], final_item[batch["p"]], final_item[batch["nega"]]
        out = (user * pos).sum(1) - (user * nega).sum(1)
        if self.takes_sigmoid:
            out = out.sigmoid()
        regularization = 1e-4 * (user.square() + pos.square() + nega.square()).sum(1).mean()
        return -out.log().mean() + regularization  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SumOfSimilarities(Case):
    """Kinds of failures of services, one of them frequent, with a contrastive loss within small batches.

    Report: github.com/WHU-AISE/TVDiag/pull/5. Found by the author of the change: where the sum of the similarities of a
    sample is zero, the division by it is NaN; a small number is added to all divisors. A batch of one kind has none.
    """

    kinds = ("undefined-operation", "empty-reduction")
    places = ("div",)
    good = 0.35
    added = 0.0
    cure = settings(added=1e-8)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"\beps|small (?:value|number)|clamp"
    batch_size = 6
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
        self.typeClassifier = nn.Linear(8, 4)

    def data(self) -> dict[str, Tensor]:
        generator = noise(20404)
        labels = torch.multinomial(torch.tensor([7.0, 1.0, 1.0, 1.0]), 640, replacement=True, generator=generator)
        centers = 1.5 * torch.randn(4, 12, generator=generator)
        return {"graph": centers[labels] + torch.randn(640, 12, generator=generator), "labels": labels}

    def contrastive(self, x: Tensor, labels: Tensor) -> Tensor:
        x = functional.normalize(x, dim=1)
        same, itself = labels[:, None] == labels, torch.eye(len(x))
        similarity = (2 * x @ x.T).exp() * (1 - itself)
        sim = similarity * same
        sim_sum = sim + (similarity - sim).sum(1, keepdim=True) + self.added
        partial = -(torch.div(sim, sim_sum) + ~same + itself).log()  # fault
        return partial.sum() / (partial.count_nonzero() + self.added)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.encoder(batch["graph"])
        classified = functional.cross_entropy(self.typeClassifier(x), batch["labels"])
        return classified + 0.1 * self.contrastive(x, batch["labels"])

    def score(self) -> float:
        """The cross-entropy."""
        batch = self.data()
        return float(functional.cross_entropy(self.typeClassifier(self.encoder(batch["graph"])), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
