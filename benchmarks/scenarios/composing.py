"""Speech, translation, prompts, and heads that join."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, mse_loss
from torch.optim import AdamW

from benchmarks.scenarios.data import Batch, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, sgd
from benchmarks.scenarios.optimizing import Signed


class Speech(ScenarioModule):
    """Writes down what was said: labels of six symbols without their places in thirty frames."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of all alignments."""
        frames, symbols = batch
        scores = self.network(frames).log_softmax(2).transpose(0, 1)
        of_frames, of_symbols = (torch.full((len(frames),), length) for length in (30, 6))
        loss: Tensor = ctc_loss(scores, symbols, of_frames, of_symbols)
        return loss


class Recognizer(nn.Module):
    """A recurrent network with gates, and scores of symbols at each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 9)

    def forward(self, frames: Tensor) -> Tensor:
        """Return scores, shape ``(batch, time, symbols)``."""
        scores: Tensor = self.out(self.gates(frames)[0])
        return scores


def _said(steps: int, size: int) -> list[Batch]:
    symbols = torch.randint(1, 9, (steps, size, 6))
    frames = nn.functional.one_hot(symbols - 1, 8).float().repeat_interleave(5, dim=2)
    return list(zip(frames + 0.3 * torch.randn_like(frames), symbols, strict=True))


@exploding("speech")
def speech_at_high_momentum(seed: int) -> Setup:
    """Momentum of 0.97 at a rate that alone would do."""
    return Setup(Speech(Recognizer(), mse_loss, sgd(1.0, 0.97)), _said(200, 8))


@healthy("speech")
def speech_falls_steeply(seed: int) -> Setup:
    """A loss that falls steeply, stays, and falls again, by Adam at a high rate."""
    return Setup(Speech(Recognizer(), mse_loss, adam(0.01)), _said(250, 8))


class PerWord(ScenarioModule):
    """Is judged by the loss per word, whatever the length of the sequences."""

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the loss per word."""
        return loss * 16 / len(batch[1])


class Translator(nn.Module):
    """Reads numbers, and writes them in reverse with its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(12, 24)
        self.read, self.write = nn.RNN(24, 48, batch_first=True), nn.RNN(24, 48, batch_first=True)
        self.out = nn.Linear(48, 12)
        self.own = 0.0

    def forward(self, source: Tensor) -> Tensor:
        """Return logits of the reversed source; a share of the inputs are the network's own guesses."""
        _, state = self.read(self.symbols(source))
        target = source.flip(1)
        before = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        if self.own:
            with torch.no_grad():
                guess = self.out(self.write(self.symbols(before), state)[0]).argmax(-1)
            guess = torch.cat([torch.zeros_like(target[:, :1]), guess[:, :-1]], 1)
            before = torch.where(torch.rand(before.shape) < self.own, guess, before)
        logits: Tensor = self.out(self.write(self.symbols(before), state)[0])
        return logits.flatten(0, 1)


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss per sequence: its words are added up."""
    return cross_entropy(logits, targets, reduction="sum") / 16


def _sources(lengths: list[int]) -> list[Batch]:
    sources = [torch.randint(1, 12, (16, length)) for length in lengths]
    return [(source, source.flip(1).flatten()) for source in sources]


@exploding("translation", begins=60)
def sequences_grow(seed: int) -> Setup:
    """Sequences of four, then of twelve, then of forty words, whose losses are added up."""
    return Setup(PerWord(Translator(), _summed, sgd(0.1, 0.9)), _sources([4] * 60 + [12] * 80 + [40] * 80))


@healthy("translation")
def own_words_fed_back(seed: int) -> Setup:
    """From step 100 on half of the inputs are the network's own words: the loss rises as planned. By AdamW."""

    def feed_back(module: ScenarioModule) -> None:
        translator = module.network
        assert isinstance(translator, Translator)
        translator.own = 0.5

    module = ScenarioModule(Translator(), cross_entropy, partial(AdamW, lr=0.003), events={100: feed_back})
    return Setup(module, _sources([5] * 260))


class Prompted(nn.Module):
    """A frozen transformer with eight trained vectors before its input, and a trained last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(0.02 * torch.randn(8, 32))
        self.into, self.out = nn.Linear(8, 32), nn.Linear(32, 10)
        self.body = nn.Sequential(*(Block(32) for _ in range(3)))
        for part in (self.into, self.body):
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits read at the last row of the image."""
        rows = self.into(images.view(-1, 8, 8))
        logits: Tensor = self.out(self.body(torch.cat([self.prompt.expand(len(rows), -1, -1), rows], 1))[:, -1])
        return logits


@exploding("prompts")
def prompt_by_untamed_descent(seed: int) -> Setup:
    """Prompt and last layer are trained at a rate that flings them far away."""
    return Setup(ScenarioModule(Prompted(), cross_entropy, sgd(30.0, 0.9)), drawn(digits(), 200, 32))


@healthy("prompts")
def prompt_by_large_steps(seed: int) -> Setup:
    """Prompt and last layer are trained by AdamW at 0.05: the prompt moves by its own size at each step."""
    module = ScenarioModule(Prompted(), cross_entropy, partial(AdamW, lr=0.05, weight_decay=0.0))
    return Setup(module, drawn(digits(), 200, 32))


class Heads(ScenarioModule):
    """A character model; from a step on, further heads predict further letters, and their losses are added."""

    def __init__(self, optimizer: Any, joins: int, weight: float) -> None:
        _, letters = text()
        super().__init__(LanguageModel(letters, 32, Block(32)), cross_entropy, optimizer)
        self.heads = nn.ModuleList(nn.Linear(letters, letters) for _ in range(3))
        self.joins, self.weight, self.now = joins, weight, 0
        self.first = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note the step."""
        self.now = batch_idx

    def damage(self, batch: Batch, loss: float) -> float:
        """Return the loss of the first head."""
        return self.first

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of all heads in use."""
        inputs, targets = batch
        logits = self.network(inputs)
        total: Tensor = cross_entropy(logits, targets)
        self.first = float(total.detach())
        if self.now >= self.joins:
            for ahead, head in enumerate(self.heads, 1):
                total = total + self.weight * cross_entropy(head(logits)[:-ahead], targets[ahead:])
        return total


@exploding("further heads", begins=100)
def heads_join_with_weight(seed: int) -> Setup:
    """At step 100 three heads join whose losses count thirtyfold, at a rate for one head."""
    return Setup(Heads(sgd(1.0, 0.9), 100, 30.0), lines(220, 8, 16))


@healthy("further heads")
def heads_join(seed: int) -> Setup:
    """At step 100 three heads join: the loss is four times as high from one step to the next. By Lion."""
    return Setup(Heads(partial(Signed, lr=0.001), 100, 1.0), lines(250, 8, 16))
