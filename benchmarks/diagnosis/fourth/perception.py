"""Pictures, boxes and sound: quantities that are zero where a formula divides, or takes a root or a logarithm."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class BoxesWithoutArea(Case):
    """Intersection over union without an epsilon; an annotated box is a point, and the predicted one has shrunk."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("div", "box")
    good = 0.45
    eps = 0.0
    cure = settings(eps=1e-6)
    shuffle = False
    batch_size = 20
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.box = nn.Linear(64, 4)

    def data(self) -> dict[str, Tensor]:
        random = noise(401)
        features = torch.randn(600, 12, generator=random)
        corner = features[:, :2].sigmoid()
        size = 0.2 + features[:, 2:4].sigmoid()
        size[333] = 0.0
        features[333, 2:4] = -40.0
        return {"features": features, "box": torch.cat([corner, corner + size], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        raw = self.box(self.backbone(batch["features"]))
        begin, end = raw[:, :2], raw[:, :2] + raw[:, 2:].relu()
        low, high = batch["box"][:, :2], batch["box"][:, 2:]
        common = (torch.minimum(end, high) - torch.maximum(begin, low)).clamp(min=0).prod(1)
        union = (end - begin).prod(1) + (high - low).prod(1) - common
        overlap = common / (union + self.eps)  # fault
        return (1 - overlap).mean() + functional.l1_loss(begin, low) + functional.l1_loss(end, high)

    def score(self) -> float:
        return float(self.loss({name: one[:300] for name, one in self.clean().items()}))


class ClipStream(IterableDataset[Any]):
    """Pictures as bytes, endlessly.

    Args:
        scale: What the bytes are divided by.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield a picture and its label."""
        random = noise(403)
        while True:
            label = int(torch.randint(0, 3, (), generator=random))
            picture = torch.randint(0, 256, (3, 8, 8), generator=random, dtype=torch.uint8)
            picture[label] = picture[label] // 3
            yield {"frame": picture if self._scale == 1 else picture / self._scale, "label": label}


class FramesOfBytes(GradientDescent, Case):
    """A stream of pictures as bytes from 0 to 255, turned to floating point numbers and never divided."""

    kinds = ("unscaled-data",)
    places = ("frame",)
    good = 0.6
    unit = 1.0
    cure = settings(unit=255.0)
    lr = 0.05
    momentum = 0.9
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        )

    def loader(self) -> DataLoader[Any]:
        return DataLoader(ClipStream(self.unit), self.batch_size)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch["frame"].float()), batch["label"])

    def score(self) -> float:
        batch = next(iter(DataLoader(ClipStream(255.0), 256)))
        return float(self.loss({**batch, "frame": batch["frame"] * 255 / self.unit}))


class HolesInDepth(Case):
    """The inverse of a depth that is zero where the sensor saw nothing; the error is multiplied by a mask of zeros."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("reciprocal", "div", "mul", "depth")
    good = 0.25
    nearest = 0.0
    cure = settings(nearest=1e-3)
    cured_by = r"clamp|masked|where|away from"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 1, 3, padding=1))

    def data(self) -> dict[str, Tensor]:
        random = noise(404)
        image = torch.rand(320, 3, 8, 8, generator=random)
        depth = 1 / (0.3 + image.mean(1, keepdim=True))
        depth[torch.rand(depth.shape, generator=random) < 0.01] = 0.0
        return {"image": image, "depth": depth}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        depth = batch["depth"]
        seen = (depth > 0).float()
        error = (self.net(batch["image"]) - 1 / depth.clamp(min=self.nearest)).abs() * seen  # fault
        return error.sum() / seen.sum()


class HingeOfPairs(Case):
    """A triplet loss over all pairs of a batch; the distance is the root of a square, zero of a sample with itself."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.35
    eps = 0.0
    cure = settings(eps=1e-8)
    lr = 5e-3
    steps = 150

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 8))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(405)
        label = torch.randint(0, 5, (640,), generator=random)
        return torch.randn(640, 20, generator=random) + 2 * functional.one_hot(label, 20), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, label = self.embed(batch[0]), batch[1]
        product = points @ points.T
        squares = product.diagonal()[:, None] - 2 * product + product.diagonal()[None]
        distance = torch.sqrt(squares.clamp(min=0.0) + self.eps)  # fault
        same = label[:, None] == label[None]
        farthest = (distance * same).amax(1)
        nearest = (distance + 1e3 * same).amin(1)
        return functional.softplus(farthest - nearest).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.torch_optimizer()
        loss = self.loss(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def score(self) -> float:
        batch = tuple(field[:200] for field in self.clean())
        points = self.embed(batch[0])
        means = torch.stack([points[batch[1] == one].mean(0) for one in range(5)])
        return float((torch.cdist(points, means).argmin(1) != batch[1]).float().mean())


class FocalOfCertain(Case):
    """A focal loss with an exponent of a half, whose slope is infinite where the network is certain."""

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.2
    eps = 0.0
    cure = settings(eps=1e-6)
    lr = 0.1
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> dict[str, Tensor]:
        inputs = 3 * torch.randn(640, 6, generator=noise(406))
        return {"inputs": inputs, "label": (inputs[:, 0] + inputs[:, 1] > 0).float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logit, label = self.net(batch["inputs"]).squeeze(1), batch["label"]
        probability = torch.sigmoid(logit)
        wrong = torch.where(label > 0, 1 - probability, probability)
        weight = torch.pow(wrong + self.eps, 0.5)  # fault
        return (weight * functional.binary_cross_entropy_with_logits(logit, label, reduction="none")).mean()


class SineOfTheMargin(Case):
    """An angular margin, whose sine is a root of one minus a square; features on an axis agree with their class."""

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.5
    eps = 0.0
    cure = settings(eps=1e-6)
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3), nn.ReLU())
        nn.init.constant_(self.net[2].bias, -0.1)  # type: ignore[arg-type]
        self.classes = nn.Parameter(torch.eye(3))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(407))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = functional.normalize(self.net(batch[0]), dim=1)
        cosine = features @ functional.normalize(self.classes, dim=1).T
        sine = torch.sqrt((1 - cosine.square()).clamp(min=0.0) + self.eps)  # fault
        chosen = functional.one_hot(batch[1], 3).bool()
        logits = torch.where(chosen, cosine * 0.98 - sine * 0.2, cosine)
        return functional.cross_entropy(8 * logits, batch[1])


class NoMatchedAnchors(Case):
    """The error of the boxes is a mean over the anchors that match an object; some pictures hold none."""

    kinds = ("empty-reduction",)
    places = ("mean", "l1_loss", "smooth_l1_loss")
    good = 0.6
    by_hand = True
    cure = settings(by_hand=False)
    cured_by = r"max\(|leave the term out"
    batch_size = 4
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.trunk = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.objectness, self.offset = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 2, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(408)
        image = torch.rand(320, 1, 5, 5, generator=random)
        return {"image": image, "matched": image[:, 0] > 0.97, "offset": torch.cat([image, 1 - image], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, matched = self.trunk(batch["image"]), batch["matched"]
        score = functional.binary_cross_entropy_with_logits(self.objectness(hidden).squeeze(1), matched.float())
        found = self.offset(hidden).permute(0, 2, 3, 1)[matched]
        wanted = batch["offset"].permute(0, 2, 3, 1)[matched]
        if self.by_hand:
            return score + functional.l1_loss(found, wanted)  # fault
        return score + functional.l1_loss(found, wanted, reduction="sum") / max(found.numel(), 1)


class RatioOfSilence(Case):
    """A signal-to-noise ratio in decibels as the loss, of a speaker who says nothing in some mixtures."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "log10", "div", "speech")
    good = -3.0
    eps = 0.0
    cure = settings(eps=1e-3)
    lr = 5e-3
    batch_size = 16
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 16, 9, padding=4), nn.PReLU(), nn.Conv1d(16, 1, 9, padding=4))

    def data(self) -> dict[str, Tensor]:
        random = noise(409)
        phase = 6 * torch.rand(320, 1, generator=random)
        speech = torch.sin(0.3 * torch.arange(80.0) + phase)
        speech[torch.rand(320, generator=random) < 0.02] = 0.0
        mixture = speech + torch.randn(320, 80, generator=random)
        return {"mixture": mixture[:, None], "speech": speech}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        speech = batch["speech"]
        residual = self.net(batch["mixture"]).squeeze(1) - speech
        power, rest = speech.square().sum(1), residual.square().sum(1)
        return -10 * torch.log10(power / (rest + self.eps) + self.eps).mean()  # fault

    def score(self) -> float:
        batch = self.clean()
        heard = batch["speech"].abs().amax(1) > 0
        return float(self.loss({name: one[heard] for name, one in batch.items()}))


class DoubledLetters(Case):
    """A transcript with doubled letters, which needs a blank between them and so more frames than it has letters."""

    kinds = ("target-out-of-range",)
    places = ("ctc_loss", "text", "length")
    rows = (6, 166)
    good = 2.5
    doubled = True
    cure = settings(doubled=False)
    cured_by = "zero_infinity|longer|drop"
    shuffle = False
    batch_size = 16
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.inside, self.letters = nn.Conv1d(8, 32, 3, padding=1), nn.Linear(32, 8)
        self.criterion = nn.CTCLoss(blank=0)

    def data(self) -> dict[str, Tensor]:
        random = noise(410)
        text = torch.stack([1 + torch.randperm(7, generator=random)[:5] for _ in range(400)])
        sound = functional.one_hot(text, 8).float().repeat_interleave(2, 1)[:, :8]
        if self.doubled:
            text[166] = 3
        sound = sound + 0.2 * torch.randn(400, 8, 8, generator=random)
        return {"sound": sound, "text": text, "length": torch.full((400,), 5)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.relu(self.inside(batch["sound"].transpose(1, 2))).permute(2, 0, 1)
        scores = self.letters(hidden).log_softmax(2)
        frames = torch.full((scores.shape[1],), 8, dtype=torch.long)
        return self.criterion(scores, batch["text"], frames, batch["length"])  # fault


class PooledDeadChannel(Case):
    """Generalized mean pooling; a channel that is zero everywhere has a third root without a slope."""

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 0.5
    eps = 0.0
    cure = settings(eps=1e-4)
    cured_by = "clamp|away from|positive"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.conv = nn.Conv2d(1, 12, 3)
        nn.init.constant_(self.conv.bias, -0.2)  # type: ignore[arg-type]
        self.power = nn.Parameter(torch.tensor(3.0))
        self.head = nn.Linear(12, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(411)
        image = torch.rand(480, 1, 6, 6, generator=random)
        label = torch.randint(0, 2, (480,), generator=random)
        image[label == 1] = image[label == 1] ** 3
        return {"image": image, "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.relu(self.conv(batch["image"])).clamp(min=self.eps)
        pooled = hidden.pow(self.power).mean((2, 3)).pow(1 / self.power)  # fault
        return functional.cross_entropy(self.head(pooled), batch["label"])
