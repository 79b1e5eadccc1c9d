"""Layers and likelihoods that users wrote, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,list-item"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class OrthogonalLinear(nn.Module):
    """A layer whose weights are made orthogonal by some iterations of Newton, and then scaled.

    Args:
        size: Number of features.
        scale: Factor of the orthogonal weights.
    """

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.proxy, self.bias, self.scale = (
            nn.Parameter(torch.randn(size, size)),
            nn.Parameter(torch.zeros(size)),
            scale,
        )

    def forward(self, rows: Tensor) -> Tensor:
        weight = self.proxy - self.proxy.mean(1, keepdim=True)
        weight = weight / weight.norm()
        square, root = weight @ weight.T, torch.eye(len(weight))
        for _ in range(4):
            root = 1.5 * root - 0.5 * root @ root @ root @ square
        return functional.linear(rows, self.scale * root @ weight, self.bias)


class BlocksWithoutNormalization(Case):
    """Blocks with shortcuts and no normalization, whose orthogonal weights are scaled by the root of two.

    Report: github.com/huangleiBuaa/ONI/issues/1. Named by the author: the scale is for networks without shortcuts;
    with them and without normalization it is to be 0.8 or 0.6, or such that each layer has unit variance.
    """

    kinds = ("depth", "initialization")
    good = 0.9
    scale = 2**0.5
    cure = settings(scale=0.6)
    cured_by = r"scal|variance"
    lr = 0.05
    steps = 80

    def build(self) -> None:
        self.blocks = nn.ModuleList(
            nn.Sequential(OrthogonalLinear(16, self.scale), nn.ReLU(), OrthogonalLinear(16, self.scale))
            for _ in range(20)
        )
        self.head = nn.Linear(16, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13301)
        label = torch.randint(4, (1024,), generator=random)
        return torch.randn(4, 16, generator=random)[label] + torch.randn(1024, 16, generator=random), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = batch[0]
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return functional.cross_entropy(self.head(hidden), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class BackgroundOfNothing(Case):
    """Actions in videos by their nearness to words, and to a background whose embedding was never filled.

    Report: github.com/sauradip/STALE/issues/16. Confirmed: the embedding is left as it was allocated; fresh memory is
    zero here, and is divided by its norm. It is initialized at random.
    """

    kinds = ("initialization", "undefined-operation")
    places = ("div", "background")
    good = 0.7
    fills = False
    cure = settings(fills=True)
    not_cured_by = (settings(lr=1e-5),)
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.encode = nn.Sequential(nn.Conv1d(12, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 16, 3, padding=1))
        self.register_buffer("words", torch.randn(5, 16, generator=noise(13302)))
        self.background = nn.Parameter(torch.zeros(1, 16))  # fault
        if self.fills:
            nn.init.kaiming_uniform_(self.background, nonlinearity="relu")

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13303)
        action = torch.randint(6, (512, 4), generator=random).repeat_interleave(5, 1)
        video = torch.randn(6, 12, generator=random)[action] + torch.randn(512, 20, 12, generator=random)
        return video.mT.contiguous(), action

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen, words = self.encode(batch[0]).mT, torch.cat([self.words, self.background])
        seen = seen / seen.norm(dim=2, keepdim=True)
        words = words / words.norm(dim=1, keepdim=True)  # fault
        return functional.cross_entropy((seen @ words.T).mT / 0.1, batch[1])


class RowsThatSeeNothing(Case):
    """A causal model of tokens in bfloat16, padded at the left, with a mask of minus infinity for padding and future.

    Report: github.com/bentrevett/pytorch-seq2seq/issues/191. Found by the reporter: a mask of -1e10 does not fit half
    precision and was replaced by minus infinity, which gave NaN; -1e4 trains. Rows at the left attend to nothing.
    """

    kinds = ("undefined-operation",)
    places = ("softmax",)
    good = 0.8
    options = settings(precision="bf16-mixed")
    hidden = float("-inf")
    cure = settings(hidden=-1e4)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"finite|-1e4|large negative"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.tokens, self.places_in = nn.Embedding(13, 32), nn.Embedding(16, 32)
        self.mix, self.head = nn.Linear(32, 96), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 13))

    def data(self) -> tuple[Tensor]:
        random = noise(13304)
        first = torch.randint(12, (512, 1), generator=random)
        tokens = 1 + (first + torch.randint(1, 3, (512, 1), generator=random) * torch.arange(16)) % 12
        start = torch.randint(8, (512, 1), generator=random)
        return (tokens.masked_fill(torch.arange(16) < start, 0),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        tokens = batch[0]
        hidden = self.tokens(tokens) + self.places_in.weight
        queries, keys, values = self.mix(hidden).chunk(3, 2)
        scores = queries @ keys.mT / 32**0.5
        visible = torch.ones(16, 16, dtype=torch.bool).tril() & (tokens != 0)[:, None]
        shares = scores.masked_fill(~visible, self.hidden).softmax(2)  # fault
        scores = self.head(hidden + shares.to(values.dtype) @ values)[:, :-1]
        return functional.cross_entropy(scores.mT.float(), tokens[:, 1:], ignore_index=0)


class PartsOfAPicture(Case):
    """Points of pictures as a mixture of parts, whose likelihoods are summed as exponentials and become narrow.

    Report: github.com/mlberkeley/scae-pytorch/pull/4. Confirmed: an exponential of the likelihood becomes infinite
    after some epochs; it is replaced by a stable sum of exponentials.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    host = "plain"
    good = -65.0
    is_stable = False
    cure = settings(is_stable=True)
    not_cured_by = (settings(lr=1e-4),)
    lr = 2e-2
    steps = 500

    def build(self) -> None:
        self.parts, self.log_width = nn.Parameter(0.5 * torch.randn(6, 28)), nn.Parameter(torch.full((6, 1), 0.4))
        self.share = nn.Parameter(torch.zeros(6))

    def data(self) -> tuple[Tensor]:
        random = noise(13305)
        part = torch.randint(4, (1024,), generator=random)
        return (torch.randn(4, 28, generator=random)[part] + 0.008 * torch.randn(1024, 28, generator=random),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        apart = (batch[0][:, None] - self.parts) / self.log_width.exp()
        each = -(apart.square() / 2 + self.log_width + 0.919).sum(2) + self.share.log_softmax(0)
        if self.is_stable:
            return -each.logsumexp(1).mean()
        return -each.exp().sum(1).log().mean()  # fault
