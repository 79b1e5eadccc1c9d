"""Losses that users wrote, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,index"

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class DensityOfBoxes(Case):
    """Offsets and sizes of boxes by the density of a Gaussian, whose deviation may shrink to nothing.

    Report: github.com/motokimura/PyTorch_Gaussian_YOLOv3/issues/23. Confirmed by the reporter: a constant is added to
    the deviation, and training is stable; a lower rate and clipping only put it off.
    """

    kinds = ("loss-without-floor",)
    host = "plain"
    good = 0.015
    added = 0.0
    cure = settings(added=0.3)
    not_cured_by = (settings(lr=0.01),)
    cured_by = r"constant to|minimum|smallest|clamp"
    lr = 3e-2
    steps = 400

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(6, 48), nn.LeakyReLU(0.1), nn.Linear(48, 48), nn.LeakyReLU(0.1))
        self.head = nn.Linear(48, 8)

    def data(self) -> tuple[Tensor, Tensor]:
        seen = torch.randn(1024, 6, generator=noise(13401))
        boxes = (0.5 * seen[:, :4] + 0.3 * seen[:, 2:]).sigmoid()
        boxes[:, 1], boxes[:, 3] = 0.5, 0.25
        return seen, boxes

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mean, deviation = self.head(self.body(batch[0])).sigmoid().chunk(2, 1)
        deviation = deviation + self.added
        return (deviation.log() + ((batch[1] - mean) / deviation).square() / 2).mean()

    def score(self) -> float:
        seen, boxes = self.clean()
        return float((self.head(self.body(seen)).sigmoid()[:, :4] - boxes).abs().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class NoSignalLeft(Case):
    """Diffusion with the velocity as target, weighted by the ratio of signal to noise, which is zero at the last time.

    Report: github.com/kohya-ss/sd-scripts/pull/934. Confirmed: the weight is divided by the ratio before it is
    multiplied by it, which is zero over zero at the last time; one division by the ratio plus one is left.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.6
    divides_once = False
    cure = settings(divides_once=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"plus one|\+ ?1\b"
    batch_size = 64
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 6))
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        root = torch.linspace(0.998, 0.08, 1000).sqrt()
        self.register_buffer("signal", (root - root[-1]) * root[0] / (root[0] - root[-1]))

    def data(self) -> tuple[Tensor]:
        random = noise(13402)
        return (torch.randn(3, 6, generator=random)[torch.randint(3, (2048,), generator=random)],)

    def velocity_error(self, net: nn.Module, sample: Tensor, time: Tensor, added: Tensor) -> Tensor:
        signal = self.signal[time, None]
        rest = (1 - signal.square()).sqrt()
        wrong = net(torch.cat([signal * sample + rest * added, time[:, None] / 1000], 1))
        return (wrong - (signal * added - rest * sample)).square().mean(1)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (sample,) = batch
        time = torch.randint(1000, (len(sample),))
        error = self.velocity_error(self.net, sample, time, torch.randn_like(sample))
        ratio = self.signal[time].square() / (1 - self.signal[time].square())
        if self.divides_once:
            return (error * ratio.clamp(max=5.0) / (ratio + 1)).mean()
        return (error * (ratio.clamp(max=5.0) / ratio) * (ratio / (ratio + 1))).mean()  # fault

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for mean, weight in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(weight, 0.05)

    def score(self) -> float:
        (sample,), random = self.clean(), noise(13403)
        time = torch.randint(1000, (2048,), generator=random)
        added = torch.randn(2048, 6, generator=random)
        return float(self.velocity_error(self.average, sample, time, added).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)


class LabelWithoutSamples(Case):
    """A focal loss balanced by the effective number of samples of each label, of which one has no sample.

    Report: github.com/fcakyon/balanced-loss/pull/12. Confirmed: the weight of a label without samples is infinite, and
    NaN once the weights are divided by their sum; such labels are given a weight of zero.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.45
    leaves_out = False
    cure = settings(leaves_out=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"zero|count|label"
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 6))
        self.counts = torch.bincount(self.data()[1], minlength=6).double().numpy()

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13404)
        label = torch.tensor([0, 0, 0, 1, 1, 2, 3, 5]).repeat(128)
        return torch.randn(6, 10, generator=random)[label] + torch.randn(1024, 10, generator=random), label

    def weights(self) -> Tensor:
        counts = self.counts
        effective = 1.0 - 0.999**counts
        if self.leaves_out:
            effective[counts == 0] = math.inf
        weights = (1.0 - 0.999) / effective  # fault
        return torch.tensor(weights / weights.sum() * len(counts)).float()  # fault

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores, wanted = self.net(batch[0]), functional.one_hot(batch[1], 6).float()
        weight = (self.weights() * wanted).sum(1, keepdim=True)  # fault
        plain = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        focus = (1 - (-plain).exp()).square()
        return (weight * focus * plain).sum() / wanted.sum()

    def score(self) -> float:
        rows, label = self.clean()
        return float((self.net(rows).argmax(1) != label).float().mean())


class EstimateWithoutEstimator(Case):
    """Features of contents and of domains are made independent by an estimate of their mutual information.

    Report: github.com/VisionLearningGroup/DAL/issues/7 and issues/5. Named by a contributor: the statistics network is
    trained to lower the estimate like all other networks, where it has to raise it. The estimate then has no bound.
    """

    kinds = ("loss-without-floor",)
    places = ("statistics",)
    good = 0.4
    raises = False
    cure = settings(raises=True)
    cured_by = r"maximi[sz]e|sign|ascent|separate"
    batch_size = 64
    lr = 3e-3
    steps = 500

    def build(self) -> None:
        self.automatic_optimization = False
        self.contents, self.domains = (nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))
        self.classify = nn.Linear(4, 3)
        self.statistics = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(13405)
        label = torch.randint(3, (2048,), generator=random)
        return torch.randn(3, 12, generator=random)[label] + 0.7 * torch.randn(2048, 12, generator=random), label

    def information(self, content: Tensor, domain: Tensor) -> Tensor:
        joint = self.statistics(torch.cat([content, domain], 1))[:, 0]
        apart = self.statistics(torch.cat([content, domain.roll(1, 0)], 1))[:, 0]
        return joint.mean() - apart.logsumexp(0) + math.log(len(apart))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        encoding, estimating = self.torch_optimizer(0), self.torch_optimizer(1)
        if self.raises:
            estimating.zero_grad()
            self.manual_backward(-self.information(self.contents(batch[0]).detach(), self.domains(batch[0]).detach()))
            estimating.step()
        content = self.contents(batch[0])
        wrong = functional.cross_entropy(self.classify(content), batch[1])
        encoding.zero_grad()
        estimating.zero_grad()
        self.manual_backward(wrong + 0.1 * self.information(content, self.domains(batch[0])))
        encoding.step()
        if not self.raises:
            estimating.step()

    def score(self) -> float:
        rows, label = self.clean()
        content = self.contents(rows)
        wrong = functional.cross_entropy(self.classify(content), label)
        return float(wrong + 0.1 * self.information(content, self.domains(rows)).abs())

    def configure_optimizers(self) -> Any:
        own = [*self.contents.parameters(), *self.domains.parameters(), *self.classify.parameters()]
        return [torch.optim.Adam(own, lr=self.lr), torch.optim.Adam(self.statistics.parameters(), lr=self.lr)]
