"""Half precision, and what ends beyond the number format in the forward pass."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class HalfWeights:
    """Weights of a type of half precision, and Adam with an epsilon that float16 can hold; the base of cases."""

    dtype_name = "float16"
    lr: float

    @property
    def weights_type(self) -> torch.dtype:
        """Type of the weights."""
        chosen: torch.dtype = getattr(torch, self.dtype_name)
        return chosen

    def configure_optimizers(self) -> Any:
        """Return Adam."""
        module: Any = self
        return torch.optim.Adam(module.parameters(), lr=self.lr, eps=1e-4)


class PenaltyOfMasks(HalfWeights, Case):
    """Attention in float16 whose mask adds (1 - mask) * -1e9, which is minus infinity there: zero times it is NaN."""

    kinds = ("half-precision",)
    places = ("mul", "copy", "to_copy")
    good = 0.6
    cure = settings(dtype_name="float32")
    cured_by = r"float32|finfo|-1e4"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.words = nn.Embedding(30, 16)
        self.rating, self.head = nn.Linear(16, 1), nn.Linear(16, 2)
        self.to(self.weights_type)

    def data(self) -> dict[str, Tensor]:
        random = noise(461)
        ids = torch.randint(0, 30, (480, 7), generator=random)
        mask = torch.arange(7) < torch.randint(2, 8, (480, 1), generator=random)
        return {"ids": ids, "mask": mask, "label": ((ids > 14) & mask).any(1).long()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.words(batch["ids"])
        least = torch.tensor(-1e9).to(hidden.dtype)  # fault
        score = self.rating(hidden).squeeze(2) + (1 - batch["mask"].to(hidden.dtype)) * least  # fault
        pooled = (score.softmax(1)[..., None] * hidden).sum(1)
        return functional.cross_entropy(self.head(pooled).float(), batch["label"])


class TinyEpsilon(HalfWeights, Case):
    """A normalization written by hand in float16 with an epsilon of 1e-8, which is zero there; some rows are flat."""

    kinds = ("half-precision", "undefined-operation")
    places = ("div", "rsqrt", "sqrt")
    good = 0.45
    least = 1e-8
    cure = settings(least=1e-3)
    cured_by = r"\beps|float32|clamp"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        self.to(self.weights_type)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(462)
        series = torch.randn(512, 8, generator=random)
        label = (series[:, :1] > series[:, 1:2]).float()
        series[torch.rand(512, generator=random) < 0.01] = 1.0
        return series, label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        series = batch[0].to(self.weights_type)
        centred = series - series.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + self.least)  # fault
        return functional.binary_cross_entropy_with_logits(self.net(scaled).float(), batch[1])


class EnergyOfASpectrum(HalfWeights, Case):
    """The sum of squares over a long spectrum in float16 is beyond 65,504; it is divided by the length afterwards."""

    kinds = ("half-precision", "forward-overflow")
    places = ("sum",)
    good = 0.5
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16"
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.conv, self.head = nn.Conv1d(1, 4, 9, stride=4), nn.Linear(4, 2)
        self.to(self.weights_type)

    def data(self) -> dict[str, Tensor]:
        random = noise(463)
        label = torch.randint(0, 2, (320,), generator=random)
        wave = 30 * torch.randn(320, 1, 400, generator=random) * (1 + 0.5 * label[:, None, None])
        return {"wave": wave, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.conv(batch["wave"].to(self.weights_type))
        energy = hidden.square().sum(2) / hidden.shape[2]  # fault
        return functional.cross_entropy(self.head((energy + 1).log()).float(), batch["label"])


class VarianceUnderAutocast(Case):
    """A variance as a mean of squares less a squared mean under bfloat16 autocast: a rounding makes it negative."""

    kinds = ("half-precision", "undefined-operation")
    places = ("sqrt",)
    good = 0.5
    precision = "bf16-mixed"
    cure = settings(precision="32-true")
    cured_by = r"float32|32-true|clamp|var\("
    lr = 5e-3
    steps = 150

    @property
    def options(self) -> Any:  # type: ignore[override]
        """Arguments of the Trainer."""
        return {"precision": self.precision}

    def build(self) -> None:
        self.inside, self.out = nn.Linear(12, 24), nn.Linear(24, 1)
        nn.init.constant_(self.inside.bias, 6.0)

    def data(self) -> dict[str, Tensor]:
        inputs = torch.randn(512, 12, generator=noise(464)) / 4
        return {"inputs": inputs, "label": (inputs[:, 0] > inputs[:, 1]).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.inside(batch["inputs"])
        mean = hidden.mean(1, keepdim=True)
        spread = torch.sqrt(hidden.square().mean(1, keepdim=True) - mean.square())  # fault
        logit = self.out((hidden - mean) / (spread + 1e-3)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logit.float(), batch["label"])


class ScaleThatDies(Case):
    """Logits in float16 are multiplied by 3000 and overflow at every step; the loss scale halves until nothing is."""

    kinds = ("half-precision",)
    good = 0.6
    precision = "16-mixed"
    cure = settings(precision="32-true")
    cured_by = "float32|bfloat16|bf16|32-true"
    lr = 2e-3
    steps = 150

    @property
    def options(self) -> Any:  # type: ignore[override]
        """Arguments of the Trainer, with a loss scale that adapts."""
        if self.precision != "16-mixed":
            return {"precision": self.precision}
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    def build(self) -> None:
        self.inside, self.out = nn.Linear(16, 64), nn.Linear(64, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = 400 * torch.randn(512, 16, generator=noise(465))
        return inputs, inputs[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.out(torch.relu(self.inside(batch[0]))) * 3000
        return functional.cross_entropy(logits.float() / 3000 / 400, batch[1])


class SquaredSpeeds(Case):
    """A kinetic term of the tenth power of a network's output, without a bound, for targets of another scale."""

    kinds = ("forward-overflow", "unscaled-data")
    places = ("pow",)
    good = 0.4
    gain = 200.0
    power = 20
    cure = settings(gain=0.3, power=2)
    cured_by = "scale near one|tanh|log|huber"
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(512, 5, generator=noise(466))
        return inputs, inputs[:, 0].square() * 0.3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        speed = self.gain * self.net(batch[0]).squeeze(1)
        return (speed.pow(self.power) - batch[1]).abs().mean()  # fault


class DecodedSizes(Case):
    """Widths of boxes are exp of 150 times a network's output, without a bound."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.3
    bounded = False
    cure = settings(bounded=True)
    cured_by = "clamp|tanh"
    lr = 0.02
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        features = 4 * torch.randn(640, 8, generator=noise(467))
        return {"features": features, "width": torch.exp(0.15 * features[:, 0])}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        size = self.net(batch["features"]).squeeze(1)
        width = torch.exp(3 * torch.tanh(size / 3) if self.bounded else 150 * size)  # fault
        return functional.l1_loss(width, batch["width"])
