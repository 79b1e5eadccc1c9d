"""Language models, retrieval and distillation, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class Tower(nn.Module):
    """An encoder of queries or of passages.

    Args:
        size: Number of features.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, features: Tensor) -> Tensor:
        return functional.normalize(self.layers(features), dim=-1)


class ContrastiveLoss(nn.Module):
    """Cross-entropy of similarities over a learned temperature; hard negatives that are padding are left out.

    Args:
        scales_first: Whether similarities are divided by the temperature before the padding is filled.
    """

    def __init__(self, scales_first: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.2))
        self.scales_first = scales_first

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor, is_padding: Tensor) -> Tensor:
        near = (query * positive).sum(-1, keepdim=True)
        far = torch.einsum("bd,bnd->bn", query, negatives)
        if self.scales_first:
            near, far = near / self.temperature, far / self.temperature
        scores = torch.cat([near, far.masked_fill(is_padding, float("-inf"))], 1)
        if not self.scales_first:
            scores = scores / self.temperature
        return functional.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))


class PaddedHardNegatives(Case):
    """Retrieval with hard negatives: minus infinity for padding is divided by a learned temperature."""

    # github.com/NVIDIA-NeMo/Automodel/pull/3850
    kinds = ("undefined-operation",)
    places = ("div", "temperature", "criterion")
    good = 0.9
    scales_first = False
    cure = settings(scales_first=True)
    cured_by = r"mask|before|\binf|clamp|finite"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.of_query, self.of_passage = Tower(8), Tower(8)
        self.criterion = ContrastiveLoss(self.scales_first)

    def data(self) -> dict[str, Tensor]:
        random = noise(701)
        query = torch.randn(640, 8, generator=random)
        number = torch.randint(2, 6, (640, 1), generator=random)
        return {
            "query": query,
            "positive": query + 0.3 * torch.randn(640, 8, generator=random),
            "negatives": torch.randn(640, 5, 8, generator=random),
            "is_padding": torch.arange(5) >= number,
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.criterion(
            self.of_query(batch["query"]),
            self.of_passage(batch["positive"]),
            self.of_passage(batch["negatives"]),
            batch["is_padding"],
        )


class ConfidencePenaltyInHalf(Case):
    """Tagging under autocast to float16 with a penalty of confident answers: a probability is rounded to zero."""

    # github.com/mst272/LLM-Dojo/issues/23 (the field); entropy written as p * log(p)
    kinds = ("half-precision", "undefined-operation")
    places = ("log", "mul")
    good = 0.3
    in_half = True
    cure = settings(in_half=False)
    cured_by = "float32|bfloat16|log_softmax|entr|xlogy"
    lr = 2e-2
    steps = 200

    def build(self) -> None:
        self.words = nn.Embedding(24, 32)
        self.reader = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(64, 6)

    def data(self) -> dict[str, Tensor]:
        words = torch.randint(0, 24, (640, 8), generator=noise(702))
        return {"input_ids": words, "tags": (words % 6 + (words.roll(1, 1) > 11)) % 6}

    def entropy(self, scores: Tensor) -> Tensor:
        chance = scores.softmax(-1)
        return -(chance * chance.log()).sum(-1).mean()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, _ = self.reader(self.words(batch["input_ids"]))
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            scores = self.tags(hidden)
            entropy = self.entropy(scores)
        return functional.cross_entropy(scores.float().flatten(0, 1), batch["tags"].flatten()) - 0.02 * entropy.float()


class Student(nn.Module):
    """A classifier of sentences by the mean of its words.

    Args:
        width: Number of features of a word.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(30, width), nn.Linear(width, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words).tanh())


class DistillationLoss(nn.Module):
    """Divergence between a student and its teacher at a temperature.

    Args:
        softens_teacher: Whether the scores of the teacher are turned into probabilities.
    """

    def __init__(self, softens_teacher: bool) -> None:
        super().__init__()
        self.divergence, self.softens_teacher = nn.KLDivLoss(reduction="batchmean"), softens_teacher

    def forward(self, scores: Tensor, of_teacher: Tensor) -> Tensor:
        target = (of_teacher / 2).softmax(-1) if self.softens_teacher else of_teacher / 2
        return 4 * self.divergence((scores / 2).log_softmax(-1), target)


class ScoresOfTheTeacher(Case):
    """Distillation in which the divergence takes the teacher's scores, of both signs, in place of probabilities."""

    # github.com/kjaved0/incremental-learning/issues/5, github.com/PolarisShi/distillation/issues/1
    kinds = ("target-out-of-range",)
    places = ("xlogy", "kl_div", "criterion", "divergence")
    good = 0.5
    softens_teacher = False
    cure = settings(softens_teacher=True)
    cured_by = "softmax|probabilit"
    lr = 1e-2
    steps = 200

    def build(self) -> None:
        self.teacher, self.student = Student(48), Student(12)
        self.teacher.requires_grad_(False)
        self.criterion = DistillationLoss(self.softens_teacher)

    def data(self) -> tuple[Tensor]:
        return (torch.randint(0, 30, (640, 9), generator=noise(703)),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        with torch.no_grad():
            of_teacher = 3 * self.teacher(batch[0])
        return self.criterion(self.student(batch[0]), of_teacher)
