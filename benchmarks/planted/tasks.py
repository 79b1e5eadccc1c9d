"""Usual networks on small synthetic data, which train well with the settings that they have here."""
# ruff: noqa: D102

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

Batch = dict[str, Tensor]


class Task(nn.Module):
    """A network with its data, loss and optimizer.

    Attributes:
        lr: The learning rate with which it trains well.
        far_too_high: Multiple of that rate at which it fails.
        inputs: The fields of the batch that hold quantities which the network takes.
        targets: The fields that hold what it is to predict.
        penalty: A term of the user's own that is added to the loss, of the network's outputs.
    """

    lr = 1e-3
    far_too_high = 1000.0
    batch_size = 32
    samples = 512
    inputs: tuple[str, ...] = ("x",)
    targets: tuple[str, ...] = ("y",)
    penalty: Callable[[Tensor], Tensor] | None = None

    def data(self, random: Generator) -> Batch:
        """Return the training set."""
        raise NotImplementedError

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return outputs, one row a sample, and the loss."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, with the penalty."""
        outputs, loss = self.outputs_and_loss(batch)
        return loss if self.penalty is None else loss + self.penalty(outputs)

    def optimizer(self, lr: float) -> Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=lr)


class Cnn(Task):
    """Classes of images, with batch normalization, by SGD with momentum."""

    lr = 0.05
    far_too_high = 2000.0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(32, 5)

    def optimizer(self, lr: float) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)

    def data(self, random: Generator) -> Batch:
        labels = torch.randint(5, (self.samples,), generator=random)
        patterns = torch.randn(5, 3, 16, 16, generator=random)
        return {"x": patterns[labels] + torch.randn(self.samples, 3, 16, 16, generator=random), "y": labels}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = self.head(self.body(batch["x"]))
        return scores, functional.cross_entropy(scores, batch["y"])


class PlainCnn(Task):
    """Classes of images, without normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        )
        self.fc1, self.fc2 = nn.Linear(800, 64), nn.Linear(64, 10)

    def data(self, random: Generator) -> Batch:
        labels = torch.randint(10, (self.samples,), generator=random)
        patterns = torch.randn(10, 1, 16, 16, generator=random)
        return {"x": patterns[labels] + 0.5 * torch.randn(self.samples, 1, 16, 16, generator=random), "y": labels}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = self.fc2(self.fc1(self.features(batch["x"])).relu())
        return scores, functional.cross_entropy(scores, batch["y"])


class LanguageModel(Task):
    """The next of some tokens, by a transformer and AdamW."""

    inputs = ()
    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 32), nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, dropout=0.0)
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 20)

    def optimizer(self, lr: float) -> Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.1)

    def data(self, random: Generator) -> Batch:
        start = torch.randint(20, (self.samples, 1), generator=random)
        step = torch.randint(1, 4, (self.samples, 1), generator=random)
        return {"tokens": (start + step * torch.arange(17)) % 20}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        states = self.tokens(tokens[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(16)
        scores = self.head(self.norm(self.blocks(states, mask=mask, is_causal=True))).flatten(0, 1)
        return scores, functional.cross_entropy(scores, tokens[:, 1:].flatten())


class Vae(Task):
    """A variational autoencoder."""

    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, 8), nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def data(self, random: Generator) -> Batch:
        factors = torch.randn(self.samples, 4, generator=random)
        return {"x": torch.tanh(factors @ torch.randn(4, 64, generator=random))}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(batch["x"])
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        outputs = self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        error = functional.mse_loss(outputs, batch["x"], reduction="sum") / len(outputs)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(outputs)
        return outputs, error + divergence


class Lstm(Task):
    """A sum over a series, by an LSTM."""

    lr = 5e-3

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 32, batch_first=True), nn.Linear(32, 1)

    def data(self, random: Generator) -> Batch:
        series = torch.randn(self.samples, 30, 3, generator=random)
        return {"x": series, "y": series[:, :, 0].cumsum(1)[:, -1:] / 5}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.out(self.rnn(batch["x"])[0][:, -1])
        return outputs, functional.mse_loss(outputs, batch["y"])


class Tabular(Task):
    """A quantity from a table, by SGD."""

    lr = 0.02
    far_too_high = 50.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def optimizer(self, lr: float) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=lr)

    def data(self, random: Generator) -> Batch:
        columns = torch.randn(self.samples, 12, generator=random)
        return {"x": columns, "y": columns[:, :1] * columns[:, 1:2] + columns[:, 2:3].sin()}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self.net(batch["x"])
        return outputs, functional.mse_loss(outputs, batch["y"])


class Segmentation(Task):
    """A mask of an image, by a small U-Net."""

    lr = 2e-3
    batch_size = 16
    samples = 256
    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        )
        self.mid = nn.Sequential(
            *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        )
        self.up, self.last = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.Conv2d(32, 1, 1)

    def data(self, random: Generator) -> Batch:
        mask = (functional.avg_pool2d(torch.randn(self.samples, 1, 24, 24, generator=random), 5, 1, 2) > 0.1).float()
        return {"x": mask + 0.5 * torch.randn(self.samples, 1, 24, 24, generator=random), "y": mask}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        detail = self.down(batch["x"])
        outputs = self.last(torch.cat([detail, self.up(self.mid(detail))], 1))
        return outputs.flatten(1), functional.binary_cross_entropy_with_logits(outputs, batch["y"])


class Contrastive(Task):
    """Pairs of two kinds of data, with a learned temperature."""

    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.text = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def data(self, random: Generator) -> Batch:
        factors = torch.randn(self.samples, 6, generator=random)
        texts = factors @ torch.randn(6, 20, generator=random)
        return {"x": factors @ torch.randn(6, 32, generator=random), "text": texts}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image, text = (functional.normalize(one, dim=1) for one in (self.image(batch["x"]), self.text(batch["text"])))
        scores = self.logit_scale.exp() * image @ text.T
        own = torch.arange(len(scores))
        return scores, (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


class Graph(Task):
    """A property of graphs, by two layers of averages over neighbors."""

    lr = 5e-3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def data(self, random: Generator) -> Batch:
        edges = (torch.rand(self.samples, 10, 10, generator=random) < 0.3).float()
        edges = (edges + edges.transpose(1, 2) + torch.eye(10)).clamp(max=1)
        nodes = torch.randn(self.samples, 10, 8, generator=random)
        target = ((edges @ nodes)[:, :, 0] / edges.sum(2)).mean(1, keepdim=True) * 3
        return {"x": nodes, "edges": edges, "y": target}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        share = batch["edges"] / batch["edges"].sum(2, keepdim=True)
        states = self.first(share @ batch["x"]).relu()
        outputs = self.out(self.second(share @ states).relu().mean(1))
        return outputs, functional.mse_loss(outputs, batch["y"])


class Diffusion(Task):
    """The noise in points on a circle."""

    lr = 2e-3
    batch_size = 64
    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.times, self.condition = nn.Embedding(50, 32), nn.Linear(32, 64)
        self.first = nn.Linear(2, 64)
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def data(self, random: Generator) -> Batch:
        angle = 2 * math.pi * torch.rand(self.samples, generator=random)
        noise = 0.05 * torch.randn(self.samples, 2, generator=random)
        return {"x": torch.stack([angle.cos(), angle.sin()], 1) + noise}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        points = batch["x"]
        time, noise = torch.randint(50, (len(points),)), torch.randn_like(points)
        kept = (1 - (time + 1) / 51.0)[:, None].to(points.dtype)
        mixed = kept.sqrt() * points + (1 - kept).sqrt() * noise
        outputs = self.net(self.first(mixed) + self.condition(self.times(time)))
        return outputs, functional.mse_loss(outputs, noise)


class QLearning(Task):
    """Values of actions from stored transitions, with a target network that follows slowly."""

    inputs = ("x", "next_x")
    targets = ("reward",)

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def optimizer(self, lr: float) -> Optimizer:
        return torch.optim.Adam(self.q.parameters(), lr=lr)

    def data(self, random: Generator) -> Batch:
        states = torch.randn(self.samples, 6, generator=random)
        actions = torch.randint(3, (self.samples,), generator=random)
        rewards = states[torch.arange(self.samples), actions].clamp(-1, 1)
        later = states + 0.3 * torch.randn(self.samples, 6, generator=random)
        return {"x": states, "action": actions, "reward": rewards, "next_x": later}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for own, slow in zip(self.q.parameters(), self.target.parameters(), strict=True):
                slow.lerp_(own, 0.02)
            target = batch["reward"] + 0.9 * self.target(batch["next_x"]).max(1).values
        values = self.q(batch["x"]).gather(1, batch["action"][:, None])
        return values, functional.smooth_l1_loss(values[:, 0], target)


class Seq2Seq(Task):
    """A sequence in reverse, by two GRUs with attention."""

    lr = 3e-3
    inputs = ()
    targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(12, 24)
        self.encoder, self.decoder = nn.GRU(24, 32, batch_first=True), nn.GRU(24, 32, batch_first=True)
        self.out = nn.Linear(64, 12)

    def data(self, random: Generator) -> Batch:
        source = torch.randint(2, 12, (self.samples, 8), generator=random)
        return {"source": source, "target": torch.cat([torch.ones(self.samples, 1).long(), source.flip(1)], 1)}

    def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        memory, state = self.encoder(self.tokens(batch["source"]))
        decoded, _ = self.decoder(self.tokens(batch["target"][:, :-1]), state)
        attended = (decoded @ memory.transpose(1, 2) / 32**0.5).softmax(-1) @ memory
        scores = self.out(torch.cat([decoded, attended], -1)).flatten(0, 1)
        return scores, functional.cross_entropy(scores, batch["target"][:, 1:].flatten())


TASKS: tuple[type[Task], ...] = (
    *(Cnn, PlainCnn, LanguageModel, Vae, Lstm, Tabular),
    *(Segmentation, Contrastive, Graph, Diffusion, QLearning, Seq2Seq),
)


def is_float(task: type[Task], fields: tuple[str, ...]) -> bool:
    """Return whether a task has any of these fields, and they hold quantities."""
    known: dict[str, Any] = task().data(Generator())
    return bool(fields) and known[fields[0]].is_floating_point()
