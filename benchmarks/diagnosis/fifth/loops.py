"""Loops of plain PyTorch whose only further line is ``watch.loss(loss)``, in the manner of public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class PlainLoop(Case):
    """A case that is trained in a loop of plain PyTorch."""

    host = "plain"


class ScaledLoop(PlainLoop):
    """A loop of plain PyTorch with a gradient scaler."""

    in_half = True
    """Whether the scaler is enabled."""

    def scaler_in_loop(self) -> Any:
        self.scaler = torch.amp.GradScaler("cpu", enabled=self.in_half)
        return self.scaler

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        scaler = getattr(self, "scaler", None) or self.scaler_in_loop()
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


class DensityAlongRays(PlainLoop):
    """A radiance field whose density is exp of 150 times a network's output; light is lost by exp(-sum)."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.05
    has_exp = True
    cure = settings(has_exp=False)
    cured_by = "softplus|clamp|tanh"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.field = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(501)
        start = torch.randn(480, 1, 3, generator=random)
        points = start + torch.linspace(0, 2, 12)[:, None] * torch.randn(480, 1, 3, generator=random)
        return points, start[:, 0].sigmoid()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = self.field(batch[0])
        density = torch.exp(150 * out[..., 0]) if self.has_exp else functional.softplus(out[..., 0])  # fault
        passed = torch.exp(-(density.cumsum(1) - density))
        weight = passed * (1 - torch.exp(-density))
        return functional.mse_loss((weight[..., None] * out[..., 1:].sigmoid()).sum(1), batch[1])


class RatioOfPolicies(PlainLoop):
    """Proximal policy optimization of a narrow Gaussian: the ratio of probabilities is exp of a large difference."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 1.0
    log_deviation = -3.5
    cure = settings(log_deviation=0.0)
    cured_by = "clamp|tanh"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.actor = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 2))

    def log_chance(self, mean: Tensor, action: Tensor) -> Tensor:
        error = (action - mean) / torch.tensor(self.log_deviation).exp()
        return (-0.5 * error.square() - self.log_deviation).sum(1)

    def data(self) -> dict[str, Tensor]:
        random = noise(502)
        states, actions = torch.randn(640, 5, generator=random), torch.randn(640, 2, generator=random)
        before = self.log_chance(torch.zeros(640, 2), actions)
        return {"states": states, "actions": actions, "before": before, "gain": -(actions - states[:, :2]).abs().sum(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        now = self.log_chance(self.actor(batch["states"]), batch["actions"])
        ratio = torch.exp(now - batch["before"])  # fault
        advantage = batch["gain"] - batch["gain"].mean()
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


class TransitionsByProducts(PlainLoop):
    """A conditional random field whose normalizer is a product over ninety words, with its logarithm at the end."""

    kinds = ("forward-overflow", "recurrence")
    places = ("matmul", "mm", "mul", "bmm")
    good = 2.0
    in_logarithms = False
    cure = settings(in_logarithms=True)
    cured_by = "logsumexp|stable|log"
    lr = 0.02
    steps = 60
    batch_size = 16

    def build(self) -> None:
        self.words, self.transitions = nn.Embedding(40, 7), nn.Parameter(0.1 * torch.randn(7, 7))

    def data(self) -> dict[str, Tensor]:
        words = torch.randint(0, 40, (160, 90), generator=noise(503))
        return {"words": words, "tags": words % 7}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        scores, tags = self.words(batch["words"]), batch["tags"]
        path = scores.gather(2, tags[..., None])[..., 0].sum(1) + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)
        if self.in_logarithms:
            state = scores[:, 0]
            for place in range(1, scores.shape[1]):
                state = (state[:, :, None] + self.transitions).logsumexp(1) + scores[:, place]
            return (state.logsumexp(1) - path).mean() / scores.shape[1]
        state = scores[:, 0].exp()
        for place in range(1, scores.shape[1]):
            state = (state @ self.transitions.exp()) * scores[:, place].exp()  # fault
        return (state.sum(1).log() - path).mean() / scores.shape[1]


class ClaimsByTweedie(PlainLoop):
    """A Tweedie deviance of insurance claims: a mean that comes to be negative is raised to the power of -0.5."""

    kinds = ("undefined-operation",)
    places = ("pow",)
    good = 6.0
    positive = False
    cure = settings(positive=True)
    cured_by = "softplus|clamp|exp"
    lr = 0.02
    steps = 250

    def build(self) -> None:
        last = nn.Linear(32, 1)
        nn.init.constant_(last.bias, 1.5)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), last)

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(504)
        inputs = torch.randn(640, 6, generator=random)
        claims = (torch.rand(640, generator=random) < 0.3) * inputs[:, 0].exp()
        return inputs, claims

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        mean = self.net(batch[0]).squeeze(1)
        mean = functional.softplus(mean) + 1e-3 if self.positive else mean
        return (2 * mean.pow(0.5) + 2 * batch[1] * mean.pow(-0.5)).mean()  # fault


class PolynomialPastItsEnd(PlainLoop):
    """A polynomial decay of the rate by a schedule of the user's own, which goes on past its end: it rises again."""

    kinds = ("learning-rate-jump",)
    good = 0.5
    end = 40
    cure = settings(end=300)
    cured_by = "schedule"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(640, 1, 20, generator=noise(505))
        return signal, signal[:, 0, :3].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / self.end) ** 4)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class GradientsOfAllSteps(PlainLoop):
    """The loop of a tutorial in which the call that clears the gradients is missing; Adamax."""

    kinds = ("accumulated-gradients",)
    good = 0.15
    clears = False
    cure = settings(clears=True)
    lr = 0.05
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(506))
        return inputs, (inputs[:, 0] > inputs[:, 1]).long()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        if self.clears:
            optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adamax(self.parameters(), lr=self.lr)


class CertaintyUnderAutocast(ScaledLoop):
    """Autocast to float16 with a gradient scaler, and log(1 - p) of a p that is rounded to one."""

    kinds = ("half-precision", "undefined-operation")
    places = ("log",)
    good = 0.4
    cure = settings(in_half=False)
    cured_by = "float32|logits|clamp"
    lr = 0.02
    steps = 250

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = 4 * torch.randn(640, 10, generator=noise(507))
        return inputs, (inputs[:, :1] > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.in_half):
            logits = self.net(batch[0])
            if not self.in_half:
                return functional.binary_cross_entropy_with_logits(logits, batch[1])
            chance = logits.sigmoid()
            return -(batch[1] * chance.log() + (1 - batch[1]) * (1 - chance).log()).mean()  # fault


class GapsInReadings(PlainLoop):
    """A temporal convolution over readings of a meter; in the months after an outage they hold NaN."""

    kinds = ("nonfinite-input",)
    good = 0.3
    missing = float("nan")
    cure = settings(missing=0.0)
    cured_by = "fill"
    shuffle = False
    lr = 3e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(2, 12, 5), nn.ReLU(), nn.Conv1d(12, 12, 5), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(12 * 16, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        readings = torch.randn(1600, 2, 24, generator=noise(508))
        target = readings[:, 0, -4:].mean(1, keepdim=True)
        readings[900::50, 1, 6:9] = self.missing
        return readings, target

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head(self.net(batch[0])), batch[1])


class UnmeasuredBindings(PlainLoop):
    """The strength of a binding by two towers; for some pairs it was not measured, and the table holds NaN."""

    kinds = ("nonfinite-target",)
    good = 0.3
    missing = float("nan")
    cure = settings(missing=0.0)
    cured_by = "fill"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.drug, self.protein = nn.Linear(10, 16), nn.Linear(12, 16)

    def data(self) -> dict[str, Tensor]:
        random = noise(509)
        drug, protein = torch.randn(640, 10, generator=random), torch.randn(640, 12, generator=random)
        strength = 0.5 * (drug[:, 0] * protein[:, 0] + drug[:, 1] * protein[:, 1])
        strength[torch.rand(640, generator=random) < 0.01] = self.missing
        return {"drug": drug, "protein": protein, "strength": strength}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        score = (self.drug(batch["drug"]) * self.protein(batch["protein"])).sum(1)
        return functional.smooth_l1_loss(score, batch["strength"])


class MetresOfATerrain(PlainLoop):
    """Heights of a terrain in metres, near 2,000, into a multilayer perceptron; stochastic gradient descent."""

    kinds = ("unscaled-data",)
    good = 0.3
    scale = 1.0
    cure = settings(scale=2e-3)
    cured_by = "scale|normali"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        heights = 2000 + 400 * torch.randn(640, 9, generator=noise(510))
        return self.scale * heights, (heights[:, :1] - heights[:, 8:]) / 600

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class AveragedDescentAtThreeHundred(PlainLoop):
    """A recurrent tagger with gates, trained by averaged gradient descent at a rate of 300, which a paper has at 30."""

    kinds = ("learning-rate",)
    good = 0.6
    cure = settings(lr=1.0)
    lr = 300.0
    steps = 150

    def build(self) -> None:
        self.words, self.rnn = nn.Embedding(20, 12), nn.GRU(12, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 20, (480, 10), generator=noise(511))
        return words, (words % 3)[:, -1]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.rnn(self.words(batch[0]))[0][:, -1]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.ASGD(self.parameters(), lr=self.lr)


class UninitializedTransitions(PlainLoop):
    """A parameter made by torch.empty that nothing initializes; there is NaN in what the memory held."""

    kinds = ("initialization",)
    places = ("mixing",)
    good = 0.3
    garbage = float("nan")
    cure = settings(garbage=0.0)
    lr = 0.01
    steps = 150

    def build(self) -> None:
        self.inside, self.head = nn.Linear(6, 16), nn.Linear(16, 1)
        mixing = torch.randn(16, 16) / 4
        mixing[3, 5], mixing[9, 2] = self.garbage, self.garbage
        self.mixing = nn.Parameter(mixing)

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 6, generator=noise(512))
        return inputs, inputs[:, :1].tanh()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.head((self.inside(batch[0]) @ self.mixing).tanh()), batch[1])


class CriticOfSounds(PlainLoop):
    """A Wasserstein network on waveforms with RMSprop, from whose loop the clipping of the critic was removed."""

    kinds = ("loss-without-floor",)
    good = 1.5
    bound = 0.0
    cure = settings(bound=0.05)
    cured_by = "clamp|penalty|bound|spectral"
    lr = 0.02
    steps = 300

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 24))
        self.critic = nn.Sequential(nn.Linear(24, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor]:
        phase = 6.28 * torch.rand(640, 1, generator=noise(513))
        return ((torch.arange(24) * 0.5 + phase).sin(),)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_generator, of_critic = optimizers
        (waves,) = batch
        made = self.generator(torch.randn(len(waves), 4))
        of_critic.zero_grad()
        distance = self.critic(made.detach()).mean() - self.critic(waves).mean()
        watch.loss(distance)
        backward(distance)
        of_critic.step()
        if self.bound:
            for parameter in self.critic.parameters():
                parameter.data.clamp_(-self.bound, self.bound)
        of_generator.zero_grad()
        loss = -self.critic(made).mean()
        watch.loss(loss)
        backward(loss)
        of_generator.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.RMSprop(self.generator.parameters(), lr=self.lr),
            torch.optim.RMSprop(self.critic.parameters(), lr=self.lr),
        ]

    def score(self) -> float:
        (waves,) = self.clean()
        return float(self.critic(waves).abs().mean()) + float(self.generator(torch.randn(64, 4)).abs().mean())


class ValuesOfTheirOwn(PlainLoop):
    """Q-learning of an inventory without a target network, in which unsold goods double: the discount is above one."""

    kinds = ("moving-target",)
    good = 30.0
    discount = 1.05
    cure = settings(discount=0.5)
    cured_by = "slow|target network|huber|bound"
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.q_net = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 3))

    def data(self) -> dict[str, Tensor]:
        random = noise(514)
        state = torch.rand(640, 4, generator=random)
        action = torch.randint(0, 3, (640,), generator=random)
        following = 1.1 * state + 0.1 * torch.rand(640, 4, generator=random)
        return {"state": state, "action": action, "reward": state[:, 0] * action, "next_state": following}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            target = batch["reward"] + self.discount * self.q_net(batch["next_state"]).amax(1)
        value = self.q_net(batch["state"]).gather(1, batch["action"][:, None])[:, 0]
        return functional.mse_loss(value, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=self.lr)

    def score(self) -> float:
        return float(self.q_net(self.clean()["state"]).abs().mean())


class RangeOfAnEcho(PlainLoop):
    """A range as the hypotenuse of two outputs, which a mask makes zero where no echo came back."""

    kinds = ("undefined-operation",)
    places = ("hypot",)
    good = 0.3
    least = 0.0
    cure = settings(least=1e-3)
    cured_by = r"\beps|clamp|away"
    lr = 5e-3
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(515)
        inputs = torch.randn(640, 5, generator=random)
        came = (torch.rand(640, 1, generator=random) > 0.01).float()
        return inputs, came, torch.hypot(inputs[:, 0], inputs[:, 1]) * came[:, 0]

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        out = self.net(batch[0]) * batch[1] + self.least
        return functional.l1_loss(torch.hypot(out[:, 0], out[:, 1]), batch[2])  # fault


class OverflowsAtTheStart(ScaledLoop):
    """Autocast to float16 with a gradient scaler, whose first scales are too large, as is usual: it finds its scale."""

    kinds = ("unknown",)
    healthy = True
    good = 0.3
    lr = 0.01
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 8, generator=noise(516))
        return inputs, 4 * inputs[:, :1]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            out = self.net(batch[0])
        return functional.mse_loss(out.float(), batch[1])


class WarmRestarts(PlainLoop):
    """Cosine annealing with warm restarts at a rate that the network bears: the loss rises at each and comes back."""

    kinds = ("unknown",)
    healthy = True
    good = 0.35
    lr = 0.02
    steps = 400

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(640, 1, 8, 8, generator=noise(517))
        return picture, picture[:, 0, 2:4, 2:4].flatten(1).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 80)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
