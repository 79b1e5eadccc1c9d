"""Language models, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.nineteenth.language import Scaled
from benchmarks.diagnosis.twentieth.language import walks


class AnswerIsCutOff(Case):
    """Fine-tuning on chats with a loss of the answers only; a long prompt leaves no answer after it is cut off.

    Report: github.com/ml-explore/mlx-lm/pull/1355. Found by the author of the change: the prompt reaches beyond the
    sequence that is kept, the loss is divided by the number of answer tokens, and this is at least one with the change.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "sum", "mean")
    good = 0.6
    at_least = 0
    cure = settings(at_least=1)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 2
    lr = 3e-3
    steps = 900

    def build(self) -> None:
        self.embed_tokens = nn.Embedding(20, 32)
        self.layers = nn.GRU(32, 48, batch_first=True)
        self.lm_head = nn.Linear(48, 20)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21101)
        chats = walks(960, 12, 21102)
        offset = torch.randint(4, 15, (960, 1), generator=generator)
        return {"inputs": chats["input_ids"], "targets": chats["labels"], "offsets": offset}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.lm_head(self.layers(self.embed_tokens(batch["inputs"]))[0])
        mask = (torch.arange(12) >= batch["offsets"]).float()
        ce = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        ntoks = mask.sum().clamp(min=self.at_least)
        return (ce * mask.flatten()).sum() / ntoks  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class FeedForwardInHalf(Scaled):
    """Fine-tuning a large encoder that was trained in another format, in mixed precision.

    Report: github.com/huggingface/transformers/issues/10830, with pull/10956. Found by a maintainer: the output of the
    feed-forward layer overflows, and the loss is finite with autocast turned off within this layer.
    """

    kinds = ("half-precision",)
    places = ("wo", "linear", "addmm", "ff", "matmul", "mm")
    host = "plain"
    good = 0.8
    ff_in_half = True
    cure = settings(ff_in_half=False)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 16
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        super().build()
        self.shared = nn.Embedding(20, 32)
        self.mixers = nn.ModuleList(nn.GRU(32, 32, batch_first=True) for _ in range(2))
        self.layer_norms = nn.ModuleList(nn.RMSNorm(32) for _ in range(5))
        self.wi = nn.ModuleList(nn.Linear(32, 64, bias=False) for _ in range(2))
        self.wo = nn.ModuleList(nn.Linear(64, 32, bias=False) for _ in range(2))
        self.lm_head = nn.Linear(32, 20, bias=False)
        with torch.no_grad():
            self.wo[1].weight.mul_(2e5).clamp_(-6e4, 6e4)

    def data(self) -> dict[str, Tensor]:
        return walks(640, 12, 21103)

    def ff(self, layer: int, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.ff_in_half):
            return self.wo[layer](self.wi[layer](x).relu())  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            x = self.shared(batch["input_ids"])
            for layer in range(2):
                x = x + self.mixers[layer](self.layer_norms[2 * layer](x))[0]
                x = x + self.ff(layer, self.layer_norms[2 * layer + 1](x).float())
            logits = self.lm_head(self.layer_norms[4](x))
        return functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())


class RatioInThePadding(Case):
    """Answers of a language model by their rewards within groups, with the probabilities of the model that gave them.

    Report: github.com/MakazhanAlpamys/Soup/pull/1084. Found by the author of the change: the old logarithms differ
    widely from the new ones where answers are padded, the exponential is infinite there, and zero times infinity in the
    backward pass is NaN. The old logarithms are clamped.
    """

    kinds = ("forward-overflow", "undefined-operation")
    places = ("exp", "mul", "old_per_token_logps", "min", "minimum")
    host = "plain"
    good = -0.4
    least = -torch.inf
    cure = settings(least=-20.0)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"clamp|masked_fill|\bmask"
    batch_size = 32
    lr = 5e-3
    steps = 400

    def build(self) -> None:
        self.embed = nn.Embedding(12, 24)
        self.model = nn.GRU(24, 32, batch_first=True)
        self.lm_head = nn.Linear(32, 12)

    def data(self) -> dict[str, Tensor]:
        generator = noise(21104)
        completion = torch.randint(1, 12, (960, 8), generator=generator)
        length = torch.randint(4, 9, (960, 1), generator=generator)
        mask = (torch.arange(8) < length).float()
        reward = ((completion > 7) * mask).sum(1, keepdim=True) / length
        old = torch.where(mask > 0, -torch.tensor(11.0).log(), torch.tensor(-200.0))
        advantage = (reward - reward.mean()) / (reward.std() + 1e-4)
        return {
            "completion_ids": (completion * mask).long(),
            "completion_mask": mask,
            "old_per_token_logps": old,
            "advantages": advantage,
        }

    def log_probabilities(self, ids: Tensor) -> Tensor:
        before = functional.pad(ids[:, :-1], (1, 0))
        return self.lm_head(self.model(self.embed(before))[0]).log_softmax(2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids, mask, advantages = batch["completion_ids"], batch["completion_mask"], batch["advantages"]
        per_token_logps = self.log_probabilities(ids).gather(2, ids[:, :, None])[:, :, 0]
        log_ratio = per_token_logps - batch["old_per_token_logps"].clamp(min=self.least)
        coef_1 = log_ratio.exp()  # fault
        coef_2 = coef_1.clamp(0.8, 1.2)
        per_token_loss = -torch.min(coef_1 * advantages, coef_2 * advantages)
        return ((per_token_loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

    def score(self) -> float:
        """The share of rewarded words that the model would say, as a negative number."""
        log_probabilities = self.log_probabilities(self.clean()["completion_ids"])
        return -float(log_probabilities.exp()[:, :4, 8:].sum(2).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class EndOfTheSequence(Case):
    """Fine-tuning with a penalty of the end of a sequence where it should go on, and of going on where it should end.

    Report: foreai.co/blog/nans-out-of-nowhere-the-trick-that-saved-my-training-run. Solved by its author: the penalty
    is the logarithm of one minus the probability of the end; it is computed from the other logits instead.
    """

    kinds = ("undefined-operation",)
    places = ("log", "rsub")
    good = 0.7
    of_the_others = False
    cure = settings(of_the_others=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"logsumexp|log1p|logsigmoid|clamp|\beps|small (?:value|number)"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.wte = nn.Embedding(20, 32)
        self.h = nn.GRU(32, 48, batch_first=True)
        self.lm_head, self.skip = nn.Linear(48, 20), nn.Linear(32, 20, bias=False)
        with torch.no_grad():
            self.skip.weight[0] = 24 * self.wte.weight[1] / self.wte.weight[1].square().sum()

    def data(self) -> dict[str, Tensor]:
        tokens = walks(640, 12, 21105)
        goes_on = torch.rand(640, 12, generator=noise(21106)) < 0.9
        labels = torch.where(goes_on | (tokens["input_ids"] != 1), tokens["labels"], 0)
        return {"input_ids": tokens["input_ids"], "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.wte(batch["input_ids"])
        logits = (self.lm_head(self.h(x)[0]) + self.skip(x)).flatten(0, 1)
        labels = batch["labels"].flatten()
        ends = labels == 0
        ce = functional.cross_entropy(logits, labels)
        if self.of_the_others:
            goes_on = logits[:, 1:].logsumexp(1) - logits.logsumexp(1)
        else:
            goes_on = (1 - logits.softmax(1)[:, 0]).log()  # fault
        ending = logits.log_softmax(1)[:, 0]
        pos_penalty = -torch.where(ends, torch.zeros(()), goes_on).mean()
        neg_penalty = -torch.where(ends, ending, torch.zeros(())).mean()
        return ce + 0.3 * pos_penalty + 0.3 * neg_penalty

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
