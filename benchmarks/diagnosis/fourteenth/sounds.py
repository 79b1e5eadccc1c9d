"""Sounds and sequences, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SilentBins(Case):
    """Noise is taken from spectra by a rectified gain, judged by sizes and by phase; some bins are made silent.

    Report: github.com/yxlu-0102/MP-SENet/issues/16. Confirmed by the author: the size and the phase of a bin whose
    real and imaginary parts are both zero have no slope; small numbers are added below the root and before the angle
    is taken.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "fabric"
    good = 0.4
    added = 0.0
    cure = settings(added=1e-9)
    not_cured_by = (settings(lr=1e-3),)
    cured_by = r"small number|silent"
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(16, 48, 3, padding=1), nn.GELU(), nn.Conv1d(48, 8, 3, padding=1))
        self.turn = nn.Conv1d(16, 8, 3, padding=1)
        nn.init.constant_(self.net[2].bias, 1.5)

    def data(self) -> dict[str, Tensor]:
        random = noise(14201)
        tone = torch.randint(8, (512,), generator=random)
        when = torch.arange(24)
        phase = 0.4 * (1 + tone[:, None]) * when + 6.28 * torch.rand(512, 1, generator=random)
        clean = torch.zeros(512, 8, 24, dtype=torch.complex64)
        clean[torch.arange(512), tone] = torch.polar(torch.full_like(phase, 2.0), phase)
        clean = clean + 0.2 * torch.randn(512, 8, 24, dtype=torch.complex64, generator=random)
        heard = clean + 0.7 * torch.randn(512, 8, 24, dtype=torch.complex64, generator=random)
        return {"heard": torch.view_as_real(heard), "clean": torch.view_as_real(clean)}

    def filtered(self, heard: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([heard[..., 0], heard[..., 1]], 1)
        gain, turn = self.net(seen).relu(), 0.3 * self.turn(seen).tanh()
        real = gain * (heard[..., 0] * turn.cos() - heard[..., 1] * turn.sin())
        imaginary = gain * (heard[..., 0] * turn.sin() + heard[..., 1] * turn.cos())
        return real, imaginary

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        (real, imaginary), clean = self.filtered(batch["heard"]), batch["clean"]
        wrong = (real - clean[..., 0]).square().mean() + (imaginary - clean[..., 1]).square().mean()
        size = (real.square() + imaginary.square() + self.added).sqrt()  # fault
        wrong = wrong + (size - clean.norm(dim=-1)).square().mean()
        angle = torch.atan2(imaginary, real + self.added**0.5)
        off = angle - torch.atan2(clean[..., 1], clean[..., 0])
        return wrong + 0.1 * (1 - off.cos()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DecayWithinChunks(Case):
    """Tokens are kept in a state that decays by gates, computed for a chunk at once with exponentials of summed gates.

    Report: github.com/fla-org/flash-linear-attention/issues/77. Confirmed by the author: the exponential of a
    cumulative decay with the other sign overflows once gates close; the difference has to be taken before the
    exponential.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.5
    takes_difference = False
    cure = settings(takes_difference=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"difference|before"
    batch_size = 32
    lr = 1.5e-2
    steps = 200

    def build(self) -> None:
        self.tokens = nn.Embedding(12, 16)
        self.mix = nn.Linear(16, 4 * 16)
        nn.init.constant_(self.mix.bias[:16], 3.0)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(32, 12)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(14202)
        tokens = torch.randint(12, (1024, 40), generator=random)
        return tokens, tokens.roll(1, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.tokens(batch[0])
        gate, query, key, value = self.mix(hidden).chunk(4, 2)
        decay = functional.logsigmoid(gate).cumsum(1)
        causal = torch.ones(40, 40, dtype=torch.bool).tril()
        if self.takes_difference:
            apart = (decay[:, :, None] - decay[:, None]).masked_fill(~causal[..., None], -torch.inf)
            scores = (query[:, :, None] * key[:, None] * apart.exp()).sum(3)
        else:
            scores = (query * decay.exp()) @ (key * (-decay).exp()).mT  # fault
        mixed = scores.masked_fill(~causal, 0.0) @ value / 4
        return functional.cross_entropy(self.head(torch.cat([self.norm(mixed), hidden], 2))[:, 1:].mT, batch[1][:, 1:])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SmallestEpsilon(Case):
    """Samples of a few short sounds are learned by heart; the loss jumps again and again, and does not settle.

    Report: github.com/ibab/tensorflow-wavenet/issues/143, pull/113 and pull/147. Confirmed: squares of gradients that
    are near zero make the steps of Adam large, since its epsilon is tiny; a larger epsilon made it stable.
    """

    kinds = ("optimizer-state", "learning-rate")
    good = 0.1
    eps = 1e-10
    cure = settings(eps=1e-2)
    cured_by = r"\beps"
    batch_size = 8
    lr = 0.08
    steps = 700

    def build(self) -> None:
        self.first = nn.Conv1d(16, 32, 1)
        self.blocks = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**number) for number in range(4))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1))

    def data(self) -> tuple[Tensor]:
        random = noise(14203)
        when = torch.arange(48)
        pitch = 0.2 + 0.6 * torch.rand(32, 2, 1, generator=random)
        wave = (pitch * when + 6.28 * torch.rand(32, 2, 1, generator=random)).sin().sum(1)
        return ((4 * (wave + 2)).round().long().clamp(0, 15),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (wave,) = batch
        hidden = self.first(functional.one_hot(wave, 16).float().mT)
        for block in self.blocks:
            gate, value = block(functional.pad(hidden, (block.dilation[0], 0))).chunk(2, 1)
            hidden = hidden + gate.sigmoid() * value.tanh()
        return functional.cross_entropy(self.last(hidden)[:, :, 15:-1], wave[:, 16:])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)


class NormsThatStandStill(Case):
    """A small draft model beside a frozen body, with all weights in bfloat16, whose normalizations never change.

    Report: github.com/vllm-project/speculators/pull/765. Confirmed: a step near one is larger in bfloat16 than the
    updates, so that weights that start at one never move; they are kept in float32.
    """

    kinds = ("half-precision",)
    host = "plain"
    good = 0.35
    dtype_of_weights = torch.bfloat16
    cure = settings(dtype_of_weights=torch.float32)
    cured_by = r"float32|master"
    batch_size = 64
    lr = 1e-3
    steps = 500

    def build(self) -> None:
        kind = self.dtype_of_weights
        self.scales = nn.ParameterList(torch.ones(48, dtype=kind) for _ in range(3))
        self.head = nn.Linear(48, 4).to(kind)
        random = noise(14204)
        for number in range(3):
            self.register_buffer(f"frozen_{number}", torch.randn(48, 48, generator=random) / 48**0.5)

    def states(self, rows: Tensor, scales: Sequence[Tensor]) -> Tensor:
        for number, scale in enumerate(scales):
            rows = functional.rms_norm(rows, (48,)) * scale.float()
            rows = rows + (rows @ getattr(self, f"frozen_{number}")).relu()
        return rows

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(14205)
        rows = torch.randn(2048, 48, generator=random)
        scales = (torch.rand(3, 48, generator=random) > 0.6).float() * 1.4
        wanted = self.states(rows, scales.unbind()) @ torch.randn(48, 4, generator=random) / 6
        return rows, wanted - wanted.mean(0)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        kind = self.dtype_of_weights
        return functional.mse_loss(self.head(self.states(batch[0], list(self.scales)).to(kind)).float(), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
