"""Generative models, critics, reinforcement learning: objectives without a bound, and loops of the user's own."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.third.descent import GradientDescent


class DivergenceOfShares(Case):
    """A divergence written as p * log(p / q) of market shares, of which some are exactly zero."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "mul", "shares")
    good = 0.3
    eps = 0.0
    cure = settings(eps=1e-6)
    cured_by = r"clamp|xlogy|kl_div|repair"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(361)
        market = torch.randn(512, 6, generator=random)
        shares = (2 * market[:, :4]).softmax(1)
        shares[torch.rand(512, generator=random) < 0.02, 3] = 0.0
        return {"market": market, "shares": shares / shares.sum(1, keepdim=True)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predicted, shares = self.net(batch["market"]).softmax(1), batch["shares"] + self.eps
        return (shares * torch.log(shares / predicted)).sum(1).mean()  # fault


class SquashedAction(Case):
    """Behaviour cloning of a squashed Gaussian: the inverse of tanh of actions, some of which are at the end, 1."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("atanh", "action")
    good = 1.3
    most = 1.0
    cure = settings(most=0.99)
    cured_by = r"clamp|inside|repair"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(362)
        state = torch.randn(640, 5, generator=random)
        action = torch.tanh(state[:, :1] + 0.3 * torch.randn(640, 1, generator=random))
        action[torch.rand(640, generator=random) < 0.02] = 1.0
        return {"state": state, "action": action.clamp(-self.most, self.most)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (torch.atanh(batch["action"]) - self.policy(batch["state"])).square().mean() / 0.2  # fault


class CovarianceOfTooFew(Case):
    """The volume of a covariance by its determinant, of six features and batches of four samples."""

    kinds = ("undefined-operation",)
    places = ("logdet", "det", "linalg", "slogdet", "lu", "inverse")
    good = 0.55
    ridge = 0.0
    cure = settings(ridge=0.1)
    cured_by = "identity|ridge"
    batch_size = 4
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.embed, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(480, 8, generator=noise(363))
        return inputs, (inputs[:, 0] > inputs[:, 1]).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors = self.embed(batch[0])
        covariance = torch.cov(torch.cat([vectors, vectors[:2]]).T) + self.ridge * torch.eye(6)
        volume = torch.logdet(covariance)  # fault
        return functional.cross_entropy(self.head(vectors), batch[1]) - 0.01 * volume


class RateOfAGenerator(Case):
    """A point process whose intensity is the exponential of forty times a network's output."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.9
    gain = 40.0
    cure = settings(gain=1.0)
    cured_by = "tanh|clamp|softplus"
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
        nn.init.normal_(self.net[2].weight, std=0.5)  # type: ignore[arg-type]

    def data(self) -> dict[str, Tensor]:
        random = noise(364)
        place = torch.randn(640, 4, generator=random)
        return {"place": place, "events": torch.poisson(torch.exp(0.5 * place[:, 0]), generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logarithm = self.gain * self.net(batch["place"]).squeeze(1)
        return (torch.exp(logarithm) - batch["events"] * logarithm).mean()  # fault


class VarianceOfALatent(Case):
    """A variational autoencoder whose logarithm of the variance is a product of two networks and overflows in exp."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.6
    bounded = False
    cure = settings(bounded=True)
    cured_by = "tanh|clamp"
    spread = 1.0
    other_cures = settings(**{"on the usual scale": settings(spread=0.22)})
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.encoder, self.gate = nn.Linear(20, 8), nn.Linear(20, 8)
        self.mean, self.decoder = nn.Linear(20, 8), nn.Linear(8, 20)
        nn.init.normal_(self.encoder.weight, std=self.spread)
        nn.init.normal_(self.gate.weight, std=self.spread)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(365)
        return torch.randn(512, 3, generator=random) @ torch.randn(3, 20, generator=random) / 2, torch.zeros(512)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs = batch[0]
        logvar = self.encoder(inputs) * self.gate(inputs)
        logvar = 4 * torch.tanh(logvar / 4) if self.bounded else logvar
        mean = self.mean(inputs)
        code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        divergence = 0.5 * (torch.exp(logvar) + mean.square() - 1 - logvar).sum(1).mean()  # fault
        return functional.mse_loss(self.decoder(code), inputs) + 1e-3 * divergence


class CertainSensor(GradientDescent, Case):
    """The Gaussian likelihood of torch, of a sensor that nearly always repeats its value; the variance goes to zero."""

    kinds = ("loss-without-floor",)
    good = 0.0
    floor = -60.0
    cure = settings(floor=-1.5)
    cured_by = "bound|clamp"
    lr = 0.2
    steps = 300

    def build(self) -> None:
        self.mean, self.log_variance = nn.Linear(2, 1), nn.Linear(2, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(367)
        inputs = torch.randn(2048, 2, generator=random)
        changed = (torch.rand(2048, 1, generator=random) < 0.004).float()
        return {"inputs": inputs, "value": 1 + 0.5 * changed}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        variance = self.log_variance(batch["inputs"]).clamp(min=self.floor).exp()
        return functional.gaussian_nll_loss(self.mean(batch["inputs"]), batch["value"], variance, eps=1e-20)


class ConfusedDomain(GradientDescent, Case):
    """Features that are to confuse a classifier of domains: minus its loss is minimized by all weights together."""

    kinds = ("loss-without-floor",)
    good = 0.5
    weight = 1.0
    cure = settings(weight=0.0)
    cured_by = "sign|bound|clamp"
    lr = 0.1
    momentum = 0.9
    steps = 250

    def build(self) -> None:
        self.features = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.task, self.domain = nn.Linear(32, 2), nn.Linear(32, 2)

    def data(self) -> dict[str, Tensor]:
        random = noise(369)
        inputs = torch.randn(640, 10, generator=random)
        return {
            "inputs": inputs,
            "label": (inputs[:, 0] > 0).long(),
            "domain": torch.randint(0, 2, (640,), generator=random),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.features(batch["inputs"])
        task = functional.cross_entropy(self.task(hidden), batch["label"])
        return task - self.weight * functional.cross_entropy(self.domain(hidden), batch["domain"])

    def score(self) -> float:
        batch = self.clean()
        return float(functional.cross_entropy(self.task(self.features(batch["inputs"])), batch["label"]))


class ValueOfTheNextState(GradientDescent, Case):
    """Temporal differences off policy with a tuple of fields; the next state's features are larger than the state's."""

    kinds = ("moving-target",)
    good = 3.0
    stretch = 1.6
    cure = settings(stretch=0.5)
    cured_by = "slow|follows|huber|bound|discount"
    lr = 0.1
    steps = 300

    def build(self) -> None:
        self.value = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(370)
        state = torch.randn(640, 5, generator=random).abs()
        return state, 0.1 * state[:, :1], self.stretch * state

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        state, reward, following = batch
        with torch.no_grad():
            target = reward + 0.97 * self.value(following)
        return functional.mse_loss(self.value(state), target)

    def score(self) -> float:
        return float(self.value(self.clean()[0]).abs().mean())


class TargetCopiedEachStep(Case):
    """Q-learning with a target network that is copied after every step, and a discount above one by a slip."""

    kinds = ("moving-target",)
    good = 5.0
    discount = 1.5
    cure = settings(discount=0.7)
    cured_by = "slow|follows|huber|bound|discount"
    lr = 0.01
    steps = 400

    def build(self) -> None:
        self.q_network = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 3))
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(371)
        states = torch.randn(640, 4, generator=random)
        return {
            "states": states,
            "actions": torch.randint(0, 3, (640,), generator=random),
            "rewards": states[:, 0].sigmoid(),
            "next_states": states.roll(1, 0),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        chosen = self.q_network(batch["states"]).gather(1, batch["actions"][:, None]).squeeze(1)
        best = self.target_network(batch["next_states"]).amax(1)
        return functional.mse_loss(chosen, batch["rewards"] + self.discount * best)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.target_network.load_state_dict(self.q_network.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.q_network.parameters(), lr=self.lr)

    def score(self) -> float:
        return float(self.q_network(self.clean()["states"]).abs().mean())


class MomentumAboveOne(GradientDescent, Case):
    """Gradient descent with momentum=1.02 by a slip for 0.92."""

    kinds = ("optimizer-state",)
    places = ("sgd", "momentum")
    good = 0.3
    momentum = 1.02
    cure = settings(momentum=0.92)
    cured_by = "momentum"
    lr = 0.01
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(372))
        return inputs, inputs[:, :1] + 0.5 * inputs[:, 1:2].abs()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])


class SquaresForgottenAtOnce(Case):
    """RMSprop with alpha=0, so that each weight moves by the rate at every step, and a momentum of 0.99 on top."""

    kinds = ("optimizer-state",)
    places = ("rmsprop", "momentum")
    good = 0.4
    momentum = 0.995
    cure = settings(momentum=0.5)
    cured_by = "momentum"
    lr = 2e-3
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 12, generator=noise(373))
        return inputs, inputs[:, :1] * inputs[:, 1:2].tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr, alpha=0.9, momentum=self.momentum)


class DiscriminatorNotCleared(Case):
    """A generative adversarial net that clears the generator's gradients only: the discriminator's add up."""

    kinds = ("accumulated-gradients",)
    good = 1.5
    clear = False
    cure = settings(clear=True)
    lr = 0.02
    steps = 500

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
        self.judge = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))

    def data(self) -> dict[str, Tensor]:
        return {"real": torch.randn(640, 2, generator=noise(374)) + torch.tensor([1.0, -1.0])}

    def loss(self, batch: Any) -> Tensor:
        return functional.softplus(-self.judge(batch["real"])).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        generator, judge = self.torch_optimizer(0), self.torch_optimizer(1)
        fake = self.generator(torch.randn(len(batch["real"]), 4))
        if self.clear:
            judge.zero_grad()
        wrong = self.loss(batch) + functional.softplus(self.judge(fake.detach())).mean()
        self.manual_backward(wrong)
        judge.step()
        generator.zero_grad()
        self.toggle_optimizer(self.optimizers()[0])  # type: ignore[index]
        self.manual_backward(functional.softplus(-self.judge(fake)).mean())
        generator.step()
        self.untoggle_optimizer(self.optimizers()[0])  # type: ignore[index]

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=self.lr),
            torch.optim.SGD(self.judge.parameters(), lr=self.lr, momentum=0.5),
        ]

    def score(self) -> float:
        return float(sum(one.norm() for one in self.judge.parameters())) / 10


class ImportanceOfNobody(Case):
    """A weighted mean of losses, whose weights are zero for all samples of a rare batch."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 0.4
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"clamp|at least"
    lr = 0.02
    batch_size = 16
    shuffle = False
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(375)
        inputs = torch.randn(640, 5, generator=random)
        weight = (torch.rand(640, generator=random) > 0.4).float()
        weight[320:336] = 0.0
        return {"inputs": inputs, "weight": weight, "target": inputs[:, 0] + inputs[:, 1].tanh()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        error = (self.net(batch["inputs"]).squeeze(1) - batch["target"]).square()
        return (batch["weight"] * error).sum() / batch["weight"].sum().clamp(min=self.least)  # fault
