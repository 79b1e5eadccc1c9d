"""Classifiers, embeddings, graphs and simulations, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class ExponentialOfLoss(Case):
    """A client of a federation minimizes the exponential of the cross-entropy of a batch, divided by a parameter.

    Report: stackoverflow.com, "weird behaviour of loss function in pytorch". Confirmed by the answer: after some
    batches it is NaN, since the exponential of an unbounded number overflows.
    """

    kinds = ("forward-overflow", "learning-rate")
    places = ("exp",)
    host = "plain"
    good = 0.35
    tempered = True
    cure = settings(tempered=False)
    cured_by = r"logarithm|bounded|clamp|\bloss itself"
    batch_size = 32
    lr = 0.03
    eta = 1.0
    scale = 3.0
    steps = 300

    def build(self) -> None:
        self.client_model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(16201)
        target = torch.randint(5, (1024,), generator=generator)
        data = torch.randn(5, 20, generator=generator)[target] + 1.2 * torch.randn(1024, 20, generator=generator)
        mistaken = torch.rand(1024, generator=generator) < 0.06
        return self.scale * data, torch.where(mistaken, torch.randint(5, (1024,), generator=generator), target)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = functional.cross_entropy(self.client_model(batch[0]), batch[1])
        if self.tempered:
            loss = torch.exp(loss / self.eta)  # fault
        return loss

    def score(self) -> float:
        data, target = self.clean()
        return float(functional.cross_entropy(self.client_model(data), target))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class IsolatedSpots(Case):
    """Genes from spots of a tissue, by the means over neighbouring spots; in some slides a spot stands alone.

    Report: github.com/biomed-AI/Hist2ST/pull/7. Confirmed by the author of the change: two isolated nodes make the
    result of the whole graph NaN; the number of neighbours is kept at one or more.
    """

    kinds = ("undefined-operation", "empty-reduction")
    places = ("div",)
    good = 0.2
    least = 0.0
    cure = settings(least=1.0)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"clamp|at least|guard|\beps\b"
    batch_size = 4
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.patch_embedding = nn.Linear(8, 32)
        self.weight = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.attend = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.gene_head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16202)
        patches = torch.randn(160, 24, 8, generator=generator)
        position = torch.rand(160, 24, 2, generator=generator)
        adj = (torch.cdist(position, position) < 0.34).float() * (1 - torch.eye(24))
        mean = adj @ patches / adj.sum(2, keepdim=True).clamp(min=1)
        exps = (patches[..., :3] + mean[..., 3:6]).tanh()
        return {"patches": patches, "adj": adj, "exps": exps}

    def gnn(self, x: Tensor, adj: Tensor, weight: nn.Module) -> Tensor:
        num_neigh = adj.sum(2, keepdim=True).clamp(min=self.least)
        mask = adj.div(num_neigh)  # fault
        return functional.relu(weight(torch.cat([x, mask @ x], 2)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.patch_embedding(batch["patches"])
        for weight in self.weight:
            x = x + self.gnn(x, batch["adj"], weight)
        return functional.mse_loss(self.gene_head(self.attend(x)), batch["exps"])


class RawNodeFeatures(Case):
    """Nodes of a graph as Gaussians, ranked by divergences to nodes one and two steps away, from raw features.

    Report: github.com/abojchevski/graph2gauss/issues/8. Solved by the reporter: the loss is NaN at every rate; the
    features were not normalized to the range from zero to one.
    """

    kinds = ("unscaled-data", "forward-overflow")
    host = "plain"
    good = 1.6
    normalizes = False
    cure = settings(normalizes=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"normali[sz]|standardi[sz]|rescale"
    batch_size = 128
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        generator = noise(16203)
        group = torch.randint(4, (200,), generator=generator)
        raw = torch.randn(4, 24, generator=generator)[group] + torch.randn(200, 24, generator=generator)
        raw = (raw * 400 + 1500).clamp(min=0) * torch.logspace(-1, 2, 24)
        low, high = raw.amin(0), raw.amax(0)
        self.X = (raw - low) / (high - low) if self.normalizes else raw
        self.group = group
        self.hidden = nn.Linear(24, 64)
        self.mu, self.sigma = nn.Linear(64, 16), nn.Linear(64, 16)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16204)
        triplets = torch.randint(200, (4096, 3), generator=generator)
        group = self.group[triplets]
        keep = (group[:, 0] == group[:, 1]) & (group[:, 0] != group[:, 2]) & (triplets[:, 0] != triplets[:, 1])
        return {"triplets": triplets[keep]}

    def energy(self, mu: Tensor, sigma: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ratio = sigma[j] / sigma[i]
        trace = ratio.sum(1)
        difference = ((mu[i] - mu[j]).square() / sigma[i]).sum(1)
        return 0.5 * (trace + difference - 16 - (ratio + 1e-14).log().sum(1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.hidden(self.X).relu()
        mu, sigma = self.mu(hidden), functional.elu(self.sigma(hidden)) + 1 + 1e-14
        node, close, far = batch["triplets"].unbind(1)
        energy_close, energy_far = self.energy(mu, sigma, node, close), self.energy(mu, sigma, node, far)
        return (energy_close.square() + (-energy_far).exp()).mean()

    def score(self) -> float:
        return float(self.loss(self.clean()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SmallBatchSameRate(Case):
    """Persons by their similarity to agents on a sphere, with a batch a sixth as large and the rate as it was.

    Report: github.com/KovenYu/MAR/issues/5. Found by the author: after two epochs the loss is NaN, since the rate is
    too large for a small batch; a part of it works.
    """

    kinds = ("learning-rate",)
    good = 0.5
    lr = 0.6
    cure = settings(lr=0.02)
    batch_size = 12
    steps = 390

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)
        )
        self.agents = nn.Parameter(torch.randn(10, 32))

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(16205)
        person = torch.randint(10, (960,), generator=generator)
        x = torch.randn(10, 24, generator=generator)[person] + 0.8 * torch.randn(960, 24, generator=generator)
        return x, person

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features = self.net(batch[0])
        similarity = features @ functional.normalize(self.agents, dim=1).T
        return functional.cross_entropy(similarity, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


class NoSecondOfItsLabel(Case):
    """Features are drawn together by label, with one view of each sample; in a batch of 32 some labels occur once.

    Report: github.com/HobbitLong/SupContrast/issues/20. Found by the reporter: the denominator is zero where no other
    sample has the same label.
    """

    kinds = ("undefined-operation", "empty-reduction")
    places = ("div",)
    good = 4.4
    eps = 0.0
    cure = settings(eps=1e-7)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"small (?:value|number)|\beps|clamp"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16206)
        label = torch.randint(20, (960,), generator=generator)
        x = torch.randn(20, 16, generator=generator)[label] + 0.4 * torch.randn(960, 16, generator=generator)
        return {"features": x, "labels": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = functional.normalize(self.encoder(batch["features"]), dim=1)
        labels = batch["labels"]
        logits = features @ features.T / 0.2
        others = 1 - torch.eye(len(labels))
        mask = (labels[:, None] == labels).float() * others
        logits = logits - logits.amax(1, keepdim=True).detach()
        log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        mean_log_prob_pos = (mask * log_prob).sum(1) / (mask.sum(1) + self.eps)  # fault
        return -mean_log_prob_pos.mean()


class SeparateLogAndSoftmax(Case):
    """A student learns from the teacher's shares of the classes, by the logarithm of a softmax.

    Report: github.com/yzd-v/cls_KD/issues/13. Confirmed by the author: the loss on an own dataset is NaN where the
    logarithm and the softmax are separate.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.6
    fuses = False
    cure = settings(fuses=True)
    cured_by = r"log_softmax"
    batch_size = 32
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.student = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16207)
        label = torch.randint(8, (1024,), generator=generator)
        centers = 40 * torch.randn(8, 12, generator=generator)
        image = centers[label] + 10 * torch.randn(1024, 12, generator=generator)
        distance = (image[:, None] - centers).square().sum(2)
        return {"image": image, "label": label, "teacher": -distance / 1000}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logit_s, logit_t = 4 * self.student(batch["image"]), batch["teacher"]
        log_s = logit_s.log_softmax(1)
        if not self.fuses:
            log_s = torch.log(logit_s.softmax(1))  # fault
        other = -(logit_t.softmax(1) * log_s).sum(1).mean()
        return functional.cross_entropy(logit_s, batch["label"]) + other


class FeatureOfZeros(Case):
    """Functions of programs by an autoencoder; each feature is divided by its maximum, and one is always zero.

    Report: github.com/evandowning/deepreflect/issues/11. Found by a reader: the loss is NaN since the maximum of a
    feature is zero, and the normalization divides by it.
    """

    kinds = ("nonfinite-input", "nonfinite-target")
    places = ("features",)
    good = 0.02
    drops_empty = False
    cure = settings(drops_empty=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"remove|\bdrop\b|\bfill|divi"
    batch_size = 32
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(18, 48), nn.ReLU(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 18))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16208)
        style = torch.rand(768, 4, generator=generator)
        counts = (style @ torch.rand(4, 18, generator=generator) * 20).floor()
        counts[:, 11] = 0.0
        most = counts.amax(0)
        return {"features": counts / (most.clamp(min=1.0) if self.drops_empty else most)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = batch["features"]
        return functional.mse_loss(self.decoder(self.encoder(features)), features)


class ConstantConcentration(Case):
    """A simulator of a flow, whose normalizer gathers sums and sums of squares; the concentration is a constant.

    Report: github.com/google-deepmind/deepmind-research/issues/346. Found by a reader: by the rounding of numbers the
    variance of the concentration is below zero in the first step, and its root is NaN.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt", "normalizer")
    good = 0.1
    clamps = False
    cure = settings(clamps=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|at least|small number"
    batch_size = 16
    lr = 3e-3
    steps = 250

    def build(self) -> None:
        self.count, self.total, self.squares = torch.zeros(1), torch.zeros(5), torch.zeros(5)
        self.processor = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16209)
        state = torch.randn(512, 10, 4, generator=generator) * torch.tensor([1.0, 3.0, 0.5, 2.0])
        concentration = torch.full((512, 10, 1), 0.0414)
        velocity = torch.stack([(state[..., 0] + state[..., 2]).tanh(), (state[..., 1] / 3).sin()], 2)
        return {"node_features": torch.cat([state, concentration], 2), "velocity": velocity}

    def normalizer(self, features: Tensor) -> Tensor:
        if self.training and self.count < 5000:
            self.count += len(features)
            self.total += features.sum(0)
            self.squares += features.square().sum(0)
        mean = self.total / self.count
        variance = self.squares / self.count - mean.square()
        if self.clamps:
            variance = variance.clamp(min=0.0)
        std = variance.sqrt().clamp(min=1e-8)  # fault
        return (features - mean) / std.clamp(min=1e-3 if self.clamps else 0.0)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted = self.processor(self.normalizer(batch["node_features"].flatten(0, 1)))
        return functional.mse_loss(predicted, batch["velocity"].flatten(0, 1))


class MixtureOfLikelihoods(Case):
    """A mixture density network, whose likelihood is a sum of densities and is followed by the logarithm.

    Report: github.com/keras-team/keras/issues/1061. Confirmed by a reader: the loss is infinite after some batches,
    then NaN; where the densities are joined before the exponential is taken the problem is gone.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 0.4
    joins = False
    cure = settings(joins=True)
    not_cured_by = (settings(lr=1e-3),)
    cured_by = r"logsumexp"
    batch_size = 32
    lr = 3e-3
    steps = 390

    def build(self) -> None:
        self.hidden = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.parameters_of = nn.Linear(48, 9)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(16210)
        y = 2 * torch.rand(1024, 1, generator=generator) - 1
        x = y + 0.3 * (6.28 * y).sin() + 0.05 * torch.randn(1024, 1, generator=generator)
        far = torch.rand(1024, 1, generator=generator) < 0.005
        return x, torch.where(far, y + 8, y)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mu, log_sigma, alpha = self.parameters_of(self.hidden(batch[0])).chunk(3, 1)
        if self.joins:
            exponent = -((batch[1] - mu) / log_sigma.exp()).square() / 2 - log_sigma - 0.919
            return -(alpha.log_softmax(1) + exponent).logsumexp(1).mean()
        sigma = log_sigma.exp()
        density = (-((batch[1] - mu) / sigma).square() / 2).exp() / (sigma * 2.5066)
        return -(alpha.softmax(1) * density).sum(1).log().mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)
