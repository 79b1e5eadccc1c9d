"""Objectives, data and optimizers of further tasks, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class MelsWithGaps(Case):
    """A vocoder on spectra from another model's files, in some of which there is NaN."""

    # github.com/CorentinJ/Real-Time-Voice-Cloning/issues/797
    kinds = ("nonfinite-input",)
    places = ("mel",)
    rows = (10, 330)
    good = 0.35
    missing = float("nan")
    cure = settings(missing=0.0)
    cured_by = "fill"
    shuffle = False
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.speaker, self.net = nn.Embedding(5, 6), nn.GRU(14, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(641)
        mel = torch.randn(640, 12, 8, generator=random)
        wave = torch.stack([mel[..., 0].tanh(), mel[..., 1].tanh()], 2)
        mel[330, 5:] = self.missing
        return {"mel": mel, "speaker": torch.randint(0, 5, (640,), generator=random), "wave": wave}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        speaker = self.speaker(batch["speaker"])[:, None].expand(-1, 12, -1)
        return functional.l1_loss(self.head(self.net(torch.cat([batch["mel"], speaker], 2))[0]), batch["wave"])


class DemandStandardized(Case):
    """A Poisson likelihood of demand that was standardized before: counts below zero have no likelihood."""

    # github.com/sktime/pytorch-forecasting/issues/1201
    kinds = ("target-out-of-range", "loss-without-floor")
    good = 1.2
    is_standardized = True
    cure = settings(is_standardized=False)
    cured_by = "count|negative|unscaled|range"
    lr = 2e-2
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(642)
        week = torch.randn(640, 4, generator=random)
        demand = torch.poisson((0.6 * week[:, :1]).exp(), generator=random)
        return week, (demand - demand.mean()) / demand.std() if self.is_standardized else demand

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.poisson_nll_loss(self.net(batch[0]), batch[1])


class NoProposalAbove(Case):
    """Weights of proposals from the share that is good, by a ratio of numbers; some batches hold no good one."""

    # github.com/JJBOY/BMN-Boundary-Matching-Network/issues/22
    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 1.5
    least = 0.0
    cure = settings(least=1.0)
    cured_by = "clamp"
    batch_size = 8
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 1, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(643)
        video = torch.randn(640, 3, 10, generator=random)
        return video, torch.where(video[:, 0] > 1.9, 0.9, 0.3) + 0.05 * torch.rand(640, 10, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        chance = functional.logsigmoid(self.net(batch[0]).squeeze(1))
        rest = functional.logsigmoid(-self.net(batch[0]).squeeze(1))
        good = (batch[1] > 0.7).float()
        ratio = good.numel() / good.sum().clamp(min=self.least)  # fault
        few, many = 0.5 * ratio, 0.5 * ratio / (ratio - 1)
        return -(few * good * chance + many * (1 - good) * rest).mean()


class FactorsOfRawScale(Case):
    """A forecaster that puts scale and level of the raw series back in by exp of a network; series are in thousands."""

    # github.com/thuml/Time-Series-Library/issues/684
    kinds = ("forward-overflow", "unscaled-data")
    places = ("exp",)
    good = 0.4
    unit = 1.0
    cure = settings(unit=4000.0)
    cured_by = "scale|normali|clamp|log"
    not_cured_by = (settings(lr=1e-4),)
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.words, self.query, self.key = nn.Linear(1, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.factor = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 1))
        self.head = nn.Linear(16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(644)
        series = 4000 + 3000 * torch.randn(640, 12, generator=random)
        following = ((series[:, -1:] - series.mean(1, keepdim=True)) / 3000).tanh()
        return series / self.unit, following

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        series = batch[0]
        deviation = series.std(1, keepdim=True)
        plain = (series - series.mean(1, keepdim=True)) / deviation
        factor = self.factor(torch.cat([series, deviation], 1)).exp()  # fault
        words = self.words(plain[..., None])
        chance = (factor[..., None] * self.query(words) @ self.key(words).mT / 4).softmax(2)
        return functional.mse_loss(self.head((chance @ words)[:, -1]), batch[1])


class RewardOfACrash(Case):
    """Values of stored transitions; the simulator crashed once and returned a reward of minus a million."""

    # github.com/rail-berkeley/rlkit/issues/50 (the field), github.com/vwxyzjn/cleanrl/issues/441
    kinds = ("outlier-batch",)
    places = ("reward",)
    rows = (16, 400)
    good = 0.4
    crash = -1e6
    cure = settings(crash=0.0)
    cured_by = "clip the reward|huber"
    shuffle = False
    lr = 2e-2
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(7, 48), nn.ReLU(), nn.Linear(48, 1))
        self.aim = nn.Sequential(nn.Linear(7, 48), nn.ReLU(), nn.Linear(48, 1)).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(645)
        state, action = torch.randn(640, 5, generator=random), torch.randn(640, 2, generator=random)
        reward = -(state[:, :2] - action).abs().sum(1) / 2
        reward[400] = self.crash
        return {"state": state, "action": action, "reward": reward, "next_state": 0.9 * state}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        after = self.aim(torch.cat([batch["next_state"], 0 * batch["action"]], 1)).squeeze(1)
        value = self.net(torch.cat([batch["state"], batch["action"]], 1)).squeeze(1)
        return functional.mse_loss(value, batch["reward"] + 0.5 * after)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=self.lr)


class StepsWithoutMoments(Case):
    """Adam is restored with its number of steps and without its averages: nothing corrects that they start at zero."""

    # github.com/CodefyUI/CodefyUI/pull/147, github.com/PolymathicAI/the_well/issues/77
    kinds = ("optimizer-state",)
    good = 0.6
    restored = 20000.0
    cure = settings(restored=0.0)
    cured_by = "state|step"
    lr = 0.03
    steps = 120

    def build(self) -> None:
        self.net = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )
        inputs, labels = self.data()
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        for _ in range(150):
            optimizer.zero_grad()
            functional.cross_entropy(self.net(inputs), labels).backward()
            optimizer.step()

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(646))
        return inputs, (inputs[:, :3] * inputs[:, 3:6].sign()).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if self.restored:
            for parameter in self.parameters():
                optimizer.state[parameter] = {
                    "step": torch.tensor(self.restored),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        return optimizer


class WeightsOfTermsThatRise(Case):
    """A physics-informed network whose weights of its terms are maximized: the loss rises all the time. It is right."""

    # github.com/levimcclenny/SA-PINNs/issues/5
    kinds = ("unknown",)
    healthy = True
    good = 0.1
    lr = 3e-3
    steps = 400
    batch_size = 64

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.weights = nn.Parameter(torch.ones(2))

    def data(self) -> tuple[Tensor]:
        return (torch.rand(640, 1, generator=noise(647)),)

    def terms(self, place: Tensor) -> Tensor:
        with torch.enable_grad():
            place = place.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.net(place).sum(), place, create_graph=True)
        equation = (slope + 3 * self.net(place) - (6 * place).sin()).square().mean()
        return torch.stack([equation, (self.net(place.new_zeros(1, 1)) - 1).square().mean()])

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        terms = self.terms(batch[0])
        return (self.weights.square() * terms).sum() if self.training else terms.sum()

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": list(self.net.parameters())},
            {"params": [self.weights], "lr": 0.5, "maximize": True},
        ]
        return torch.optim.Adam(groups, lr=self.lr)


class NoEndOfAnEpisode(Case):
    """Q-learning that goes on past the end of an episode, without a discount: each round adds the reward once more."""

    # github.com/uoe-agents/epymarl/issues/43
    kinds = ("moving-target", "loss-without-floor")
    good = 20.0
    discount = 1.0
    cure = settings(discount=0.8)
    cured_by = "done|end|discount|target network|bound"
    lr = 1e-2
    steps = 600

    def build(self) -> None:
        self.q_net = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 2))

    def data(self) -> dict[str, Tensor]:
        random = noise(648)
        state = torch.randn(640, 4, generator=random)
        action = torch.randint(0, 2, (640,), generator=random)
        following = 0.8 * state + 0.3 * torch.randn(640, 4, generator=random)
        return {"state": state, "action": action, "reward": torch.ones(640), "next_state": following}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            target = batch["reward"] + self.discount * self.q_net(batch["next_state"]).amax(1)
        return functional.mse_loss(self.q_net(batch["state"]).gather(1, batch["action"][:, None])[:, 0], target)

    def score(self) -> float:
        return float(self.q_net(self.clean()["state"]).abs().mean())


class NegativeOverlap(Case):
    """Segmentation that minimizes minus the overlap: the loss falls from zero towards minus one. It is right."""

    # github.com/xmed-lab/DHC/issues/1, github.com/EdwardTyantov/ultrasound-nerve-segmentation/issues/8
    kinds = ("unknown",)
    healthy = True
    good = -0.8
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(320, 1, 10, 10, generator=noise(649))
        return picture, (functional.avg_pool2d(picture, 3, 1, 1) > 0.2).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        chance = self.net(batch[0]).sigmoid()
        return -2 * (chance * batch[1]).sum() / (chance.sum() + batch[1].sum() + 1)


class SpikesOfTwoSamples(Case):
    """Poses of heads with batches of two: the loss has a spike wherever a picture is hard, and falls. It is normal."""

    # github.com/vitoralbiero/img2pose/issues/46
    kinds = ("unknown",)
    healthy = True
    good = 1.2
    batch_size = 2
    lr = 2e-3
    steps = 500

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(650)
        face = torch.randn(640, 12, generator=random)
        hard = 1 + 6 * (torch.rand(640, 1, generator=random) < 0.03)
        return face, face[:, :3] + 0.3 * hard * torch.randn(640, 3, generator=random)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])
