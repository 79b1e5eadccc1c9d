"""Speech, proteins and series, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SpeechAfterValidation(Case):
    """Speech to letters; weights and optimizer are written and read again for a validation in the middle of the run.

    Report: github.com/mozilla/DeepSpeech/issues/258. Confirmed by the maintainer: what looks like a state that the
    restored optimizer has lost is a rate that is too large.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.15
    lr = 0.2
    cure = settings(lr=3e-3)
    batch_size = 32
    steps = 390

    def build(self) -> None:
        self.layers = nn.ModuleList(nn.Linear(*size) for size in ((12, 48), (48, 48)))
        self.lstm = nn.LSTM(48, 32, batch_first=True, bidirectional=True)
        self.layer_6 = nn.Linear(64, 7)
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        generator = noise(15401)
        letters = torch.randint(1, 7, (768, 5), generator=generator)
        sounds = torch.randn(7, 12, generator=generator)
        frames = sounds[letters].repeat_interleave(4, 1)
        return {"frames": frames + 0.5 * torch.randn(768, 20, 12, generator=generator), "letters": letters}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["frames"]
        for layer in self.layers:
            x = layer(x).relu().clamp(max=20.0)
        logits = self.layer_6(self.lstm(x)[0]).log_softmax(-1)
        count = len(x)
        return functional.ctc_loss(
            logits.transpose(0, 1), batch["letters"], torch.full((count,), 20), torch.full((count,), 5)
        )

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if self.taken == 200:
            checkpoint = copy.deepcopy({"model": self.state_dict(), "optimizer": optimizer.state_dict()})
            self.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
        self.taken += 1
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class OuterProducts(Case):
    """Contacts of residues from aligned sequences, whose outer products are summed in float16 by autocast.

    Report: github.com/aqlaboratory/openfold/pull/222. Confirmed and fixed: sums overflow in several places of the
    network; these are computed in float32.
    """

    kinds = ("half-precision",)
    places = ("outer", "bmm", "einsum")
    host = "plain"
    good = 0.45
    upcasts = False
    cure = settings(upcasts=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"float32|bfloat16|autocast"
    batch_size = 8
    lr = 1e-3
    steps = 250

    def build(self) -> None:
        self.embed = nn.Embedding(8, 24)
        self.layer_norm = nn.LayerNorm(24)
        self.linear_1, self.linear_2 = nn.Linear(24, 8), nn.Linear(24, 8)
        for linear in (self.linear_1, self.linear_2):
            nn.init.normal_(linear.weight, std=1.8)
        self.linear_out, self.head = nn.Linear(64, 32), nn.Linear(32, 1)
        nn.init.normal_(self.embed.weight)

    def data(self) -> dict[str, Tensor]:
        generator = noise(15402)
        sequences = torch.randint(8, (256, 1, 10), generator=generator).repeat(1, 192, 1)
        changed = torch.rand(256, 192, 10, generator=generator) < 0.5 * torch.rand(256, 1, 10, generator=generator)
        msa = torch.where(changed, torch.randint(8, (256, 192, 10), generator=generator), sequences)
        first, second = sequences[:, 0, :, None], sequences[:, 0, None]
        return {"msa": msa, "contact": ((first + second) % 8 < 3).float()}

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        if self.upcasts:
            with torch.autocast("cpu", enabled=False):
                return torch.einsum("bnic,bnjd->bijcd", a.float(), b.float())
        return torch.einsum("bnic,bnjd->bijcd", a, b)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        m = self.layer_norm(self.embed(batch["msa"]))
        outer = self.outer(self.linear_1(m), self.linear_2(m)).flatten(3) / 192
        pair = functional.layer_norm(self.linear_out(outer), (32,)).relu()
        return functional.binary_cross_entropy_with_logits(self.head(pair)[..., 0].float(), batch["contact"])

    def scaler_in_loop(self) -> Any:
        self.scaler = torch.amp.GradScaler("cpu")
        return self.scaler

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        scaler = getattr(self, "scaler", None) or self.scaler_in_loop()
        (optimizer,) = optimizers
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model.loss(batch)
        watch.loss(loss)
        backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class CubesOfLogarithms(Case):
    """Sales of the next day by an LSTM, with the cubed difference of logarithms as the loss.

    Report: github.com/Alfiuman/WhydahGally-LSTM-MLP/issues/2. Found by the reporter, fixed by the author: the values of
    the loss have to be above zero because of the logarithm; smaller ones are replaced by a small number.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.1
    least = -float("inf")
    cure = settings(least=1e-2)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"above zero|positive|small number|softplus"
    lr = 1e-2
    steps = 350

    def build(self) -> None:
        self.lstm, self.fc = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(15403)
        phase = 6.28 * torch.rand(768, 1, generator=generator)
        level = 0.3 + 0.7 * torch.rand(768, 1, generator=generator)
        series = level * (1.1 + (0.8 * torch.arange(15) + phase).sin()) + 0.05
        return series[:, :14, None], series[:, 14]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        predicted = self.fc(self.lstm(batch[0])[0][:, -1])[:, 0].clamp(min=self.least)
        return (batch[1].log() - predicted.log()).abs().pow(3).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
