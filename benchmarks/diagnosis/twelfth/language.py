"""Adapters, heads and attention, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class ScaleOfAdapters(Case):
    """Low-rank adapters of a frozen network, scaled by alpha where alpha over their rank was meant.

    Report: github.com/Blaizzy/mlx-vlm/issues/841. Confirmed by the reporter: with the default rank of 8 and alpha of 16
    updates are eight times as large as they should be, and training collapses.
    """

    kinds = ("learning-rate",)
    good = 0.75
    scale = 16.0
    cure = settings(scale=2.0)
    cured_by = "alpha|scal|rank"
    lr = 2e-2
    steps = 250

    def build(self) -> None:
        random = noise(12501)
        self.down = nn.ParameterList(torch.randn(48, 8, generator=random) / 48**0.5 for _ in range(4))
        self.up = nn.ParameterList(torch.zeros(8, 48) for _ in range(4))
        self.head = nn.Linear(48, 8)
        for number in range(4):
            self.register_buffer(f"frozen_{number}", torch.randn(48, 48, generator=random) / 48**0.5)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12502)
        rows = torch.randn(1024, 48, generator=random)
        return rows, (rows @ torch.randn(48, 8, generator=random)).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for number in range(4):
            changed = hidden @ getattr(self, f"frozen_{number}")
            changed = changed + self.scale * (hidden @ self.down[number] @ self.up[number])
            hidden = hidden + functional.gelu(changed)
        return functional.cross_entropy(self.head(hidden), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class HeadOfUnitVariance(Case):
    """The next token, whose head starts at a variance of one: scores have as many times that as there are features.

    Report: github.com/huggingface/transformers/pull/26441. Confirmed: the loss begins at ten times that of a guess; the
    variance is to be one over the number of features.
    """

    kinds = ("initialization",)
    host = "transformers"
    options = settings(lr_scheduler_type="constant", max_grad_norm=0.0)
    good = 3.0
    deviation = 1.0
    cure = settings(deviation=1 / 16)
    batch_size = 16
    lr = 1.5
    steps = 150

    def build(self) -> None:
        self.tokens, self.norm = nn.Embedding(200, 256), nn.LayerNorm(256)
        self.rnn = nn.GRU(256, 256, batch_first=True)
        self.head = nn.Linear(256, 200, bias=False)
        nn.init.normal_(self.head.weight, std=self.deviation)  # fault

    def data(self) -> dict[str, Tensor]:
        random = noise(12503)
        first = torch.randint(200, (640, 1), generator=random)
        step = torch.randint(1, 4, (640, 1), generator=random)
        return {"tokens": (first + step * torch.arange(12)) % 200}

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.rnn(self.tokens(tokens[:, :-1]))[0])
        return {"loss": functional.cross_entropy(self.head(hidden).mT, tokens[:, 1:])}

    def score(self) -> float:
        return float(self(**self.clean())["loss"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ZeroedColumns(Case):
    """A pretrained network some of whose units were removed is tuned by direction and size of its columns.

    Report: github.com/KohakuBlueleaf/LyCORIS/pull/166. Confirmed: the norm of a column is zero, and weights become NaN;
    a small number is added to it.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.8
    added = 0.0
    cure = settings(added=1e-6)
    not_cured_by = (settings(lr=1e-5),)
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        random = noise(12504)
        weight = torch.randn(48, 32, generator=random) / 32**0.5
        weight[[7, 20, 41]] = 0.0
        self.register_buffer("pretrained", weight)
        self.size = nn.Parameter(weight.norm(dim=1, keepdim=True))
        self.down, self.up = (
            nn.Parameter(torch.randn(4, 32, generator=random) / 32**0.5),
            nn.Parameter(torch.zeros(48, 4)),
        )
        self.head = nn.Linear(48, 5)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12505)
        rows = torch.randn(1024, 32, generator=random)
        return rows, (rows @ torch.randn(32, 5, generator=random)).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = self.pretrained + self.up @ self.down
        weight = self.size * weight / (weight.norm(dim=1, keepdim=True) + self.added)  # fault
        return functional.cross_entropy(self.head((batch[0] @ weight.T).relu()), batch[1])


class QueriesUnscaled(Case):
    """Attention in float16 over features of a detector, whose products are scaled after they are summed.

    Report: github.com/ultralytics/ultralytics/pull/24990. Confirmed: products of queries and keys overflow before they
    are scaled; queries are scaled first.
    """

    kinds = ("half-precision", "forward-overflow")
    places = ("matmul", "bmm", "attend")
    host = "fabric"
    good = 0.8
    scales_first = False
    cure = settings(scales_first=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"scale|float32|bfloat16"
    lr = 2e-3
    steps = 150

    def build(self) -> None:
        self.queries, self.keys = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)
        self.values, self.head = nn.Linear(32, 32), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 4))
        with torch.no_grad():
            self.queries.weight.mul_(45.0)
            self.keys.weight.copy_(self.queries.weight)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(12506)
        label = torch.randint(4, (512,), generator=random)
        kinds = torch.randn(4, 1, 32, generator=random)
        return kinds[label] / 3 + torch.randn(512, 8, 32, generator=random), label

    def attend(self, places: Tensor) -> Tensor:
        queries, keys = self.queries(places).half(), self.keys(places).half()
        if self.scales_first:
            queries = queries * 0.125
        scores = queries @ keys.mT  # fault
        if not self.scales_first:
            scores = scores * 0.125
        return scores.float().softmax(2) @ self.values(places)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0] + self.attend(batch[0])
        return functional.cross_entropy(self.head(hidden.mean(1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
