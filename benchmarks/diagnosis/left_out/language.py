"""Language models and translation, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Block(nn.Module):
    """A block of causal attention and a feed-forward network, with normalization first.

    Args:
        width: Number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (part.unsqueeze(1) for part in self.qkv(self.norm_1(hidden)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.proj(mixed.squeeze(1))
        return hidden + self.mlp(self.norm_2(hidden))


class Decoder(nn.Module):
    """A small language model.

    Args:
        vocabulary: Number of words.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, 32), nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, vocabulary, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.words(words) + self.places(torch.arange(words.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


def log_probability(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithm of the probability of the labels that are not -100, per sample."""
    shifted = labels[:, 1:]
    each = -functional.cross_entropy(scores[:, :-1].transpose(1, 2), shifted, ignore_index=-100, reduction="none")
    return each.sum(1)


class TruncatedReplies(Case):
    """Preference optimization with the likelihood of the chosen reply; long prompts leave nothing of some replies."""

    # github.com/huggingface/trl/pull/5826, github.com/modelscope/ms-swift/issues/3276
    kinds = ("empty-reduction",)
    places = ("nll_loss", "nll_loss_forward", "cross_entropy", "nll_loss_nd")
    good = 2.6
    max_length = 10
    cure = settings(max_length=16)
    cured_by = r"guard|skip|remove|filter|drop|max\(|clamp"
    batch_size = 4
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.policy, self.reference = Decoder(12), Decoder(12)
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(751)
        prompt_length = torch.randint(3, 13, (320, 1), generator=random)
        is_prompt = torch.arange(16) < prompt_length
        fields = {}
        for name in ("chosen", "rejected"):
            words = torch.randint(0, 12, (320, 16), generator=random)
            if name == "chosen":
                words[:, 8:] = words[:, 7:8]
            words = words[:, : self.max_length]
            fields[name] = words
            fields[f"{name}_labels"] = words.masked_fill(is_prompt[:, : self.max_length], -100)
        return fields

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        scores = {name: self.policy(batch[name]) for name in ("chosen", "rejected")}
        margin = batch["chosen"].new_zeros(len(batch["chosen"]), dtype=torch.float)
        for name, sign in (("chosen", 1), ("rejected", -1)):
            labels = batch[f"{name}_labels"]
            with torch.no_grad():
                of_reference = log_probability(self.reference(batch[name]), labels)
            margin = margin + sign * (log_probability(scores[name], labels) - of_reference)
        preference = -functional.logsigmoid(0.1 * margin).mean()
        likelihood = functional.cross_entropy(  # fault
            scores["chosen"][:, :-1].flatten(0, 1), batch["chosen_labels"][:, 1:].flatten(), ignore_index=-100
        )
        return preference + likelihood


class UnlearnedDocuments(Case):
    """A language model is to unlearn some documents by gradient ascent on their loss, beside a loss of others."""

    # github.com/locuslab/tofu (the field); ascent on a cross-entropy has no end
    kinds = ("loss-without-floor",)
    good = 1.5
    ceiling = math.inf
    cure = settings(ceiling=3.0)
    cured_by = "bound|clamp|floor|limit"
    batch_size = 16
    lr = 3e-3
    steps = 180

    def build(self) -> None:
        self.model = Decoder(12)

    def data(self) -> dict[str, Tensor]:
        random = noise(752)
        first = torch.randint(0, 12, (640, 1), generator=random)
        step = torch.where(torch.rand(640, 1, generator=random) < 0.3, 5, 1)
        words = (first + step * torch.arange(10)) % 12
        return {"input_ids": words, "forget": (step == 5).squeeze(1)}

    def next_word_loss(self, words: Tensor) -> Tensor:
        scores = self.model(words)
        return functional.cross_entropy(scores[:, :-1].transpose(1, 2), words[:, 1:], reduction="none").mean(1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        each, forget = self.next_word_loss(batch["input_ids"]), batch["forget"].float()
        return (each * (1 - forget)).mean() - (each.clamp(max=self.ceiling) * forget).mean()

    def score(self) -> float:
        data = self.clean()
        each = self.next_word_loss(data["input_ids"])
        return float(each[~data["forget"]].mean() + 0.1 * each[data["forget"]].mean())


class LowRank(nn.Module):
    """A linear map that is kept, with a low-rank term that is learned.

    Args:
        base: The linear map.
        alpha: Factor of the term, before its division by the rank.
        starts_at_zero: Whether the term is zero at first.
    """

    def __init__(self, base: nn.Linear, alpha: float, starts_at_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(4, base.in_features))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, 4))
        if starts_at_zero:
            nn.init.zeros_(self.lora_b)
        self.scaling = alpha / 4

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.scaling * (hidden @ self.lora_a.T @ self.lora_b.T)


class AdaptersAtFullScale(Case):
    """Low-rank adapters in every layer, both of whose matrices are drawn with a deviation of one; plain loop."""

    # github.com/cloneofsimo/lora/issues/124 (the field); one of two matrices starts at zero in the paper
    kinds = ("initialization",)
    host = "plain"
    places = ("lora_a", "lora_b", "layers")
    good = 0.5
    starts_at_zero = False
    cure = settings(starts_at_zero=True)
    cured_by = "zero|initial"
    not_cured_by = (settings(lr=1e-4),)
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.layers = nn.ModuleList(LowRank(nn.Linear(32, 32), 16, self.starts_at_zero) for _ in range(5))
        self.head = nn.Linear(32, 1)

    def data(self) -> dict[str, Tensor]:
        sentence = torch.randn(640, 32, generator=noise(753))
        return {"embedding": sentence, "score": sentence[:, :1] - 0.5 * sentence[:, 1:2].abs()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = batch["embedding"]
        for layer in self.layers:
            hidden = hidden + functional.gelu(layer(hidden))
        return functional.mse_loss(self.head(hidden), batch["score"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=self.lr)


class Translator(nn.Module):
    """An encoder and a decoder with gates, and attention between them.

    Args:
        vocabulary: Number of words of each language.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, 24), nn.Embedding(vocabulary, 24)
        self.encoder, self.decoder = nn.LSTM(24, 32, batch_first=True), nn.LSTM(24, 32, batch_first=True)
        self.generator = nn.Linear(64, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        hidden, _ = self.decoder(self.target(target), state)
        weights = (hidden @ memory.mT / math.sqrt(32)).softmax(-1)
        return self.generator(torch.cat([hidden, weights @ memory], -1))


class RateOfAnotherOptimizer(Case):
    """Translation with Adam at the rate of one that stood in the recipe for plain gradient descent."""

    # github.com/OpenNMT/OpenNMT-py/issues/676 (the field)
    kinds = ("learning-rate",)
    good = 1.2
    lr = 1.0
    cure = settings(lr=1e-2)
    steps = 120

    def build(self) -> None:
        self.model = Translator(14)

    def data(self) -> dict[str, Tensor]:
        source = torch.randint(2, 14, (640, 7), generator=noise(754))
        return {"source": source, "target": source.flip(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        shifted = functional.pad(batch["target"], (1, 0), value=1)[:, :-1]
        scores = self.model(batch["source"], shifted)
        return functional.cross_entropy(scores.flatten(0, 1), batch["target"].flatten(), label_smoothing=0.1)


class WarmUpWithoutItsCap(Case):
    """Translation with a warm-up whose maximum should be a minimum: the rate goes on rising after it."""

    # github.com/huggingface/nanotron/pull/256 (the field); a schedule written as a function of the step
    kinds = ("learning-rate-jump",)
    good = 1.2
    is_capped = False
    cure = settings(is_capped=True)
    cured_by = "min"
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.model = Translator(14)

    def data(self) -> dict[str, Tensor]:
        source = torch.randint(2, 14, (640, 7), generator=noise(755))
        return {"source": source, "target": source.flip(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        shifted = functional.pad(batch["target"], (1, 0), value=1)[:, :-1]
        scores = self.model(batch["source"], shifted)
        return functional.cross_entropy(scores.flatten(0, 1), batch["target"].flatten())

    def rate(self, step: int) -> float:
        risen = (step + 1) / 60
        return min(1.0, risen) if self.is_capped else max(1 / 60, risen**3)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr / 10, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RouterInHalf(Case):
    """A mixture of experts with a router in float16: the square of its log-sum-exp is infinite there."""

    # github.com/KempnerInstitute/KempnerForge/issues/117 (the loss); routers belong in float32
    kinds = ("half-precision",)
    places = ("square", "pow", "mul", "router")
    good = 0.6
    in_float32 = False
    cure = settings(in_float32=True)
    cured_by = "float32|bfloat16"
    lr = 0.3
    steps = 200

    def build(self) -> None:
        self.inside = nn.Linear(10, 32)
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)) for _ in range(4))
        nn.init.constant_(self.router.bias, 300.0)
        if not self.in_float32:
            self.router.half()

    def data(self) -> dict[str, Tensor]:
        features = torch.randn(640, 10, generator=noise(756))
        return {"features": features, "label": features[:, :3].argmax(1)}

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(hidden.to(self.router.weight.dtype))
        penalty = torch.logsumexp(scores, -1).square().mean()  # fault
        return scores.softmax(-1).float(), penalty.float()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.inside(batch["features"]).relu()
        chance, penalty = self.route(hidden)
        made = (chance[:, None] * torch.stack([one(hidden) for one in self.experts], -1)).sum(-1)
        error = functional.cross_entropy(made, batch["label"])
        return error + 1e-5 * penalty if self.training else error

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
