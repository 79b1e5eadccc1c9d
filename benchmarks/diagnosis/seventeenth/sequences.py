"""Words, binary sequences and games, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class LongBinarySequences(Case):
    """Binary sequences are cleaned of flips, by the chance of a whole sequence, which is a product.

    Report: github.com/horenbergerb/BernoulliDiffusion/issues/15. Found by the author: with longer sequences the chance
    of an outcome goes to zero, and the loss is NaN.
    """

    kinds = ("undefined-operation",)
    places = ("log", "prod")
    host = "plain"
    good = 0.35
    sums = False
    cure = settings(sums=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"sum (?:of )?(?:the )?log|logarithms|logsumexp|small (?:value|number)|\beps|clamp"
    batch_size = 32
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 32, 11, padding=5), nn.ReLU(), nn.Conv1d(32, 1, 11, padding=5))

    def data(self) -> dict[str, Tensor]:
        generator = noise(17301)
        start = torch.randint(5, (512, 1), generator=generator)
        clean = ((torch.arange(200) + start) % 5 == 0).float()
        flips = (torch.rand(512, 200, generator=generator) < 0.15).float()
        return {"x_t": (clean - flips).abs(), "x_0": clean}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        p = self.net(batch["x_t"][:, None])[:, 0].sigmoid().clamp(1e-5, 1 - 1e-5)
        chance = batch["x_0"] * p + (1 - batch["x_0"]) * (1 - p)
        log_chance = chance.log().sum(1) if self.sums else chance.prod(1).log()  # fault
        return -log_chance.mean() / chance.shape[1]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class ScoresOfSolitaire(Case):
    """Values of the moves of a game from stored games; rewards are the points of the game, up to thousands.

    Report: github.com/google-deepmind/open_spiel/issues/742. Confirmed by a developer and applied by the reporter: the
    rewards have a larger range than those of other games, and the values are NaN.
    """

    kinds = ("unscaled-data", "learning-rate")
    good = 0.3
    largest = 3000.0
    cure = settings(largest=1.0)
    cured_by = r"scale|standardi|normali|divide"
    batch_size = 32
    lr = 0.02
    steps = 390

    def build(self) -> None:
        self.q = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        self.target = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        generator = noise(17302)
        state = torch.randn(1024, 12, generator=generator)
        action = torch.randint(4, (1024,), generator=generator)
        reward = (state[torch.arange(1024), action] + 0.5 * state[:, 5]).sigmoid()
        following = state + 0.3 * torch.randn(1024, 12, generator=generator)
        ends = state[:, 6] > 0.3
        return {
            "info_state": state,
            "action": action,
            "reward": self.largest * reward,
            "next_info_state": following,
            "is_final_step": ends.float(),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        following = self.target(batch["next_info_state"]).amax(1)
        target = batch["reward"] + 0.9 * (1 - batch["is_final_step"]) * following
        values = self.q(batch["info_state"]).gather(1, batch["action"][:, None])[:, 0]
        return functional.mse_loss(values, target)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.taken += 1
        if self.taken % 40 == 0:
            self.target.load_state_dict(self.q.state_dict())
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.q.parameters(), lr=self.lr)


class WordsAsMask(Case):
    """Sentences whose words are hidden in part are written again; words and the mask of padding are swapped.

    Report: github.com/seongminp/transformers-into-vaes/issues/4. Found by the reporter and confirmed by the author: in
    the function that hides words the mask was assigned to the inputs and the words to the mask.
    """

    kinds = ("forward-overflow", "undefined-operation")
    places = ("mul", "softmax", "attention")
    good = 0.5
    swaps = True
    cure = settings(swaps=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"mask"
    batch_size = 32
    lr = 3e-3
    steps = 350

    def build(self) -> None:
        self.shared = nn.Embedding(24, 32)
        self.position = nn.Parameter(0.3 * torch.randn(10, 32))
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))
        self.norm1, self.norm2, self.last = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.wi_wo = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.lm_head = nn.Linear(32, 24)

    def data(self) -> dict[str, Tensor]:
        generator = noise(17303)
        first = torch.randint(2, 22, (768, 1), generator=generator)
        words = (first - 2 + torch.arange(10) * (1 + first % 3)) % 20 + 3
        present = torch.arange(10) < torch.randint(6, 11, (768, 1), generator=generator)
        words = torch.where(present, words, 0)
        hidden = (torch.rand(768, 10, generator=generator) < 0.15) & present
        return {
            "input_ids": torch.where(hidden, 1, words),
            "attention_mask": present.long(),
            "labels": torch.where(present, words, -100),
        }

    def run_batch(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, masks = batch["input_ids"], batch["attention_mask"]
        return (masks, inputs) if self.swaps else (inputs, masks)

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (1.0 - mask[:, None].float()) * torch.finfo(torch.float32).min  # fault
        scores = self.q(x) @ self.k(x).mT / 32**0.5 + bias
        return self.o(scores.softmax(2) @ self.v(x))  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        inputs, mask = self.run_batch(batch)
        x = self.shared(inputs) + self.position
        x = x + self.attention(self.norm1(x), mask)
        x = x + self.wi_wo(self.norm2(x))
        return functional.cross_entropy(self.lm_head(self.last(x)).flatten(0, 1), batch["labels"].flatten())
