"""Series of sensors, sales, speech and positions, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class BiasOfEmptyMemory(Case):
    """Anomalies of sensors by attention between them, with a bias that is made by `torch.empty`.

    Report: github.com/ML4ITS/mtad-gat-pytorch/issues/13, 19 and pull/27. Confirmed and fixed: the bias is whatever the
    memory holds, NaN among it, and has to begin at zero. The run fills it with bits as memory may hold them.
    """

    kinds = ("initialization",)
    places = ("bias", "feature_gat.bias")
    good = 0.1
    zeros = False
    cure = settings(zeros=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"zeros|initiali[sz]|torch\.empty"
    batch_size = 32
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.lin, self.a = nn.Linear(20, 16), nn.Parameter(torch.randn(16, 1) / 4)
        self.bias = nn.Parameter(torch.empty(6, 6))
        bits = torch.randint(-(2**31), 2**31, (6, 6), generator=noise(20312))
        with torch.no_grad():
            self.bias.copy_(torch.zeros(6, 6) if self.zeros else bits.int().view(torch.float32))
        self.gru = nn.GRU(12, 32, batch_first=True)
        self.forecasting_model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6))

    def data(self) -> dict[str, Tensor]:
        generator = noise(20301)
        phase = 6.28 * torch.rand(640, 1, 1, generator=generator)
        time = 0.6 * torch.arange(11)[:, None]
        x = (time * torch.linspace(0.5, 1.5, 6) + phase + torch.arange(6)).sin()
        x = 0.5 + 0.4 * x + 0.03 * torch.randn(640, 11, 6, generator=generator)
        return {"x": x[:, :10], "y": x[:, 10]}

    def feature_gat(self, x: Tensor) -> Tensor:
        v = x.transpose(1, 2)
        left, right = v[:, :, None].expand(-1, 6, 6, 10), v[:, None].expand(-1, 6, 6, 10)
        a_input = functional.leaky_relu(self.lin(torch.cat([left, right], 3)), 0.2)
        e = (a_input @ self.a)[..., 0]
        e = e + self.bias
        return (e.softmax(2) @ v).sigmoid().transpose(1, 2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        hidden = self.gru(torch.cat([x, self.feature_gat(x)], 2))[0][:, -1]
        return functional.mse_loss(self.forecasting_model(hidden), batch["y"]).sqrt()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PaddedSeries(Case):
    """Demand by a recurrent network and a gamma distribution; series that are too short are padded with zeros.

    Report: github.com/awslabs/gluonts/issues/519. Confirmed as a bug: the padding is zero, of which the likelihood of a
    gamma distribution takes the logarithm, and the weight of zero does not take NaN out again.
    """

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "target", "past_target")
    good = 1.6
    pads_with = 0.0
    cure = settings(pads_with=1.0)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\bpad|positive|small (?:value|number)|\bwhere\b"
    batch_size = 32
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.rnn = nn.GRU(3, 24, batch_first=True)
        self.args_proj = nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(20302)
        level = (0.5 * torch.randn(640, 1, generator=generator)).exp()
        day = torch.randint(7, (640, 1), generator=generator) + torch.arange(21)
        mean = level * (1.5 + (6.28 * day / 7).sin())
        target = mean * (0.3 * torch.randn(640, 21, generator=generator)).exp()
        length = torch.where(torch.rand(640, generator=generator) < 0.25, 14, 21)
        observed = torch.arange(21) >= 21 - length[:, None]
        target = torch.where(observed, target, self.pads_with)
        return {"past_target": target, "observed": observed.float(), "day": day / 7}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        target, observed = batch["past_target"], batch["observed"]
        angle = 6.28 * batch["day"]
        inputs = torch.stack([target[:, :-1] * observed[:, :-1], angle[:, 1:].sin(), angle[:, 1:].cos()], 2)
        alpha, beta = (functional.softplus(self.args_proj(self.rnn(inputs)[0])) + 1e-4).unbind(2)
        x, weight = target[:, 1:], observed[:, 1:]
        ll = alpha * beta.log() - alpha.lgamma() + (alpha - 1) * x.log() - beta * x  # fault
        return -(ll * weight).sum() / weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SpeechLossExplodes(Case):
    """Frames of sound from characters, by a recurrent network with attention, until the script says the loss exploded.

    Report: github.com/barronalex/Tacotron/issues/7. Confirmed by a reader: the rate was decreased step by step, and the
    training was restored from before.
    """

    kinds = ("learning-rate",)
    good = 0.25
    lr = 0.1
    cure = settings(lr=1e-2)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        self.embedding = nn.Embedding(10, 16)
        self.encoder = nn.GRU(16, 32, batch_first=True)
        self.prenet = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.attention_rnn, self.decoder_rnn = nn.GRUCell(64, 32), nn.GRUCell(64, 32)
        self.query, self.mel = nn.Linear(32, 32), nn.Linear(64, 8)

    def data(self) -> dict[str, Tensor]:
        generator = noise(20303)
        text = torch.randint(10, (480, 6), generator=generator)
        sounds = 2 * torch.rand(10, 2, 8, generator=generator) - 1
        mel = sounds[text].flatten(1, 2) + 0.05 * torch.randn(480, 12, 8, generator=generator)
        return {"text": text, "mel": mel}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        memory, mel = self.encoder(self.embedding(batch["text"]))[0], batch["mel"]
        count = len(mel)
        state, decoder, context = torch.zeros(count, 32), torch.zeros(count, 32), torch.zeros(count, 32)
        frame, frames = torch.zeros(count, 8), []
        for step in range(mel.shape[1]):
            state = self.attention_rnn(torch.cat([self.prenet(frame), context], 1), state)
            weight = (memory @ self.query(state)[:, :, None])[..., 0].softmax(1)
            context = (weight[:, None] @ memory)[:, 0]
            decoder = self.decoder_rnn(torch.cat([state, context], 1), decoder)
            frames.append(self.mel(torch.cat([decoder, context], 1)))
            frame = mel[:, step]
        return (torch.stack(frames, 1) - mel).abs().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class DistanceOfPositions(Case):
    """How far vehicles move in a minute, by the mean distance of positions; few stand still, which is known.

    Report: ddrv.cn, after a post on CSDN (106576818). Solved by its author: the loss is suddenly NaN whatever the rate
    or the batch; the root in the distance has no slope at zero, and a small number is added below it.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.2
    added = 0.0
    cure = settings(added=1e-10)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"\beps|small (?:value|number)|add "
    batch_size = 32
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.lstm = nn.LSTM(4, 32, batch_first=True)
        self.dense = nn.Linear(32, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(20304)
        speed = torch.rand(800, 2, generator=generator)
        track = speed[:, None] * (1 + 0.1 * torch.randn(800, 8, 2, generator=generator))
        extra = torch.randn(800, 8, 2, generator=generator)
        moves = torch.rand(800, 1, generator=generator) > 0.015
        return {"track": torch.cat([track, extra], 2), "moves": moves.float(), "moved": speed * moves}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        moved = batch["moves"] * self.dense(self.lstm(batch["track"])[0][:, -1])
        lx, ly = (moved - batch["moved"]).unbind(1)
        return (lx.square() + ly.square() + self.added).sqrt().mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
