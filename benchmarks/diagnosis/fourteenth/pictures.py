"""Pictures and maps, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,arg-type"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class UnboundedPrototypes(Case):
    """Two views of a picture are to have the same share of prototypes; the features are not brought to unit length.

    Report: github.com/facebookresearch/swav/issues/67. Found by readers: the exponential of scores over a small
    number is infinite in the assignment, since the features were not normalized before they were multiplied with the
    prototypes.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.9
    normalizes = False
    cure = settings(normalizes=True)
    not_cured_by = (settings(lr=3e-4),)
    cured_by = r"unit length|normali[sz]e"
    batch_size = 64
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.prototypes = nn.Linear(16, 12, bias=False)
        for layer in (self.net[0], self.net[2], self.net[4]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.orthogonal_(self.prototypes.weight)

    def data(self) -> tuple[Tensor]:
        random = noise(14301)
        kind = torch.randint(6, (2048,), generator=random)
        return (1.05 * torch.randn(6, 24, generator=random)[kind] + 0.3 * torch.randn(2048, 24, generator=random),)

    def scores(self, view: Tensor) -> Tensor:
        features = self.net(view)
        return self.prototypes(functional.normalize(features, dim=1) if self.normalizes else features)

    @torch.no_grad()
    def assigned(self, scores: Tensor) -> Tensor:
        share = (scores / 0.05).exp()  # fault
        share = share / share.sum()
        for _ in range(3):
            share = share / share.sum(0, keepdim=True) / share.shape[1]
            share = share / share.sum(1, keepdim=True) / share.shape[0]
        return share * len(share)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        first, second = (self.scores(batch[0] + 0.3 * torch.randn_like(batch[0])) for _ in range(2))
        swapped = (self.assigned(first) * (second / 0.1).log_softmax(1)).sum(1)
        swapped = swapped + (self.assigned(second) * (first / 0.1).log_softmax(1)).sum(1)
        return -swapped.mean() / 2

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PixelsOfZeros(Case):
    """An autoencoder in float16 that divides each pixel by its length; a few pictures have a black border.

    Report: github.com/huggingface/diffusers/pull/13316. Confirmed: the small number below the division is zero in
    float16, and pixels whose features are all zero are zero over zero; the length is computed in float32.
    """

    kinds = ("half-precision", "undefined-operation")
    places = ("div", "normalize")
    host = "plain"
    good = 0.25
    upcasts = False
    cure = settings(upcasts=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"float32|\beps"
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.inward = nn.Linear(3, 24, bias=False).half()
        self.narrow, self.wide = nn.Linear(24, 6).half(), nn.Linear(6, 24).half()
        self.outward = nn.Linear(24, 3).half()

    def data(self) -> tuple[Tensor]:
        random = noise(14302)
        picture = torch.rand(512, 1, 3, generator=random) * torch.rand(512, 36, 1, generator=random) + 0.05
        picture[[66, 205, 318, 471], :6] = 0.0
        return (picture,)

    def unit(self, hidden: Tensor) -> Tensor:
        full = hidden.float() if self.upcasts else hidden
        return functional.normalize(full, dim=2).to(hidden.dtype) * 24**0.5  # fault

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        picture = batch[0].half()
        hidden = self.unit(self.inward(picture).relu())
        found = self.outward(self.wide(self.narrow(hidden).relu()).relu() + hidden * picture.mean(2, keepdim=True))
        return functional.mse_loss(found.float(), batch[0]) / batch[0].var()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class HypernetworkAtFullScale(Case):
    """Small networks that change what the layers of a frozen model see begin at the scale of ordinary layers.

    Report: github.com/AUTOMATIC1111/stable-diffusion-webui/issues/4350. Confirmed by others: with all initializations
    but the small normal one, and without a normalization, the result is ruined before anything was learned.
    """

    kinds = ("initialization",)
    good = 0.66
    small = False
    cure = settings(small=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"initiali[sz]|small|0\.01"
    batch_size = 64
    lr = 1e-3
    steps = 250

    def build(self) -> None:
        self.frozen = nn.ModuleList(nn.Linear(24, 24) for _ in range(12))
        self.read = nn.Linear(24, 6)
        self.pretrain()
        self.changes = nn.ModuleList(nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)) for _ in range(12))
        for change in self.changes:
            for layer in (change[0], change[2]):
                if self.small:
                    nn.init.normal_(layer.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def pretrain(self) -> None:
        rows = torch.randn(1024, 24, generator=noise(14305))
        own = [*self.frozen.parameters(), *self.read.parameters()]
        optimizer = torch.optim.Adam(own, lr=3e-3)
        with torch.enable_grad():
            for _ in range(150):
                optimizer.zero_grad()
                functional.mse_loss(self.result(rows, None), self.wanted(rows)).backward()
                optimizer.step()
        for one in own:
            one.requires_grad_(False)
            one.grad = None

    def wanted(self, rows: Tensor) -> Tensor:
        return rows[:, :6] * rows[:, 6:12].tanh() + rows[:, 12:18]

    def result(self, rows: Tensor, changes: Sequence[nn.Module] | None) -> Tensor:
        for number, layer in enumerate(self.frozen):
            seen = rows if changes is None else rows + changes[number](rows)
            rows = rows + layer(seen).relu()
        return self.read(rows)

    def data(self) -> tuple[Tensor, Tensor]:
        rows = torch.randn(1024, 24, generator=noise(14306))
        return rows, self.wanted(rows) + 0.5 * rows[:, 18:].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.result(batch[0], list(self.changes)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.changes.parameters(), lr=self.lr, momentum=0.9)
