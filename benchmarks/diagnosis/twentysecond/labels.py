"""Labels and nodes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class FilmsOfAllGenres(Case):
    """Genres of films by a network with the loss of BP-MLL, which compares each label that is set with each other one.

    Report: github.com/vanHavel/bp-mll-tensorflow/issues/3. Confirmed by the reporter: there are films with all genres,
    and it works without them. The loss is divided by the number of pairs.
    """

    kinds = ("undefined-operation", "empty-reduction")
    places = ("div",)
    host = "plain"
    good = 0.9
    keeps_all = True
    cure = settings(keeps_all=False)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"clamp|filter|remove|\bdrop\b|at least|max\("
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.conv = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 5), nn.Tanh())

    def data(self) -> dict[str, Tensor]:
        generator = noise(22501)
        x = torch.randn(960, 12, generator=generator)
        score = x @ torch.randn(12, 5, generator=generator)
        y = (score > 0).float()
        bounds = (y.sum(1) == 0) | (y.sum(1) == 5)
        y[bounds] = functional.one_hot(score[bounds].argmax(1), 5).float()
        if self.keeps_all:
            y[torch.rand(960, generator=generator) < 0.004] = 1.0
        return {"x": x, "y": y}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted, y = self.conv(batch["x"]), batch["y"]
        pairs = y[:, :, None] * (1 - y)[:, None]
        difference = predicted[:, :, None] - predicted[:, None]
        exponential = (pairs * (-difference).exp()).sum((1, 2))
        return (exponential / (y.sum(1) * (1 - y).sum(1))).mean()  # fault


class NodesWithoutWords(Case):
    """Subjects of publications by a network of graph attention, from the words of each one over their number.

    Report: github.com/danielegrattarola/keras-gat/issues/14. Found by the reporter and fixed by the author: features
    are NaN after they are loaded, and it works with these set to 0.
    """

    kinds = ("nonfinite-input",)
    places = ("x", "features")
    rows = (44, 130, 201)
    good = 0.4
    replaces = False
    cure = settings(replaces=True)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 240
    shuffle = False
    lr = 1e-2
    steps = 150

    def build(self) -> None:
        self.kernel, self.out = nn.Linear(30, 32, bias=False), nn.Linear(32, 4)
        self.attention_self, self.attention_neighbors = nn.Linear(32, 1, bias=False), nn.Linear(32, 1, bias=False)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22502)
        subject = torch.randint(4, (240,), generator=generator)
        often = 0.05 + 0.4 * functional.one_hot(torch.arange(30) % 4, 4).float()
        words = (torch.rand(240, 30, generator=generator) < often[:, subject].T).float()
        words[list(self.rows)] = 0.0
        features = words / words.sum(1, keepdim=True)
        if self.replaces:
            features = features.nan_to_num()
        near = 0.01 + 0.06 * (subject[:, None] == subject).float()
        adjacency = (torch.rand(240, 240, generator=generator) < near).float()
        adjacency = ((adjacency + adjacency.T + torch.eye(240)) > 0).float()
        return {"features": features, "adjacency": adjacency, "subject": subject}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.kernel(30 * batch["features"])
        scores = functional.leaky_relu(self.attention_self(x) + self.attention_neighbors(x).T, 0.2)
        weights = (scores - 1e9 * (1 - batch["adjacency"])).softmax(1)
        return functional.cross_entropy(self.out(functional.elu(weights @ x)), batch["subject"])
