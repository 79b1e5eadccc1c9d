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


class NobodyDied(PlainLoop):
    """Proportional hazards, divided by the number of deaths in the batch; some batches have none."""

    # github.com/havakv/pycox/issues/124, github.com/liupei101/TFDeepSurv/issues/15
    kinds = ("empty-reduction", "undefined-operation")
    places = ("div",)
    good = 3.0
    least = 0.0
    cure = settings(least=1.0)
    cured_by = "clamp"
    batch_size = 16
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.risk = nn.Sequential(nn.Linear(6, 24), nn.SELU(), nn.Linear(24, 1))

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(601)
        patient = torch.randn(640, 6, generator=random)
        time = torch.rand(640, generator=random) * (-patient[:, 0]).exp()
        return patient, time, (torch.rand(640, generator=random) < 0.12).float()

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        order = batch[1].argsort(descending=True)
        risk, died = self.risk(batch[0][order]).squeeze(1), batch[2][order]
        likelihood = (risk - risk.logcumsumexp(0)) * died
        return -likelihood.sum() / died.sum().clamp(min=self.least)  # fault

    def score(self) -> float:
        patient, time, died = self.clean()
        return float(self.loss((patient[:64], time[:64], died[:64])))


class MagnitudeOfSilence(PlainLoop):
    """A vocoder with a loss on magnitudes of a Fourier transform, as a root of squares; padding of clips is silent."""

    # github.com/KinWaiCheuk/nnAudio/issues/138
    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 3.0
    least = 0.0
    cure = settings(least=1e-6)
    cured_by = r"\beps|clamp|away"
    lr = 2e-3
    steps = 150

    def build(self) -> None:
        self.net = nn.Sequential(nn.Conv1d(4, 24, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv1d(24, 1, 5, padding=2))

    def data(self) -> dict[str, Tensor]:
        random = noise(602)
        mel = torch.randn(480, 4, 64, generator=random)
        filled = (torch.arange(64) < torch.where(torch.arange(480) % 40 == 7, 24, 64)[:, None]).float()
        return {"mel": mel, "wave": (mel[:, 0] * mel[:, 1]).tanh() * filled, "filled": filled}

    def magnitude(self, wave: Tensor) -> Tensor:
        parts = torch.view_as_real(torch.fft.rfft(wave.unfold(1, 16, 8)))
        return torch.sqrt(parts.square().sum(-1) + self.least)  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = self.net(batch["mel"]).squeeze(1) * batch["filled"]
        return functional.l1_loss(self.magnitude(made), self.magnitude(batch["wave"]))


class ReturnsOfLongEpisodes(PlainLoop):
    """The value head of an actor-critic: returns of a thousand steps are near two thousand, and nothing scales them."""

    # github.com/openai/baselines/issues/362, github.com/deepspeedai/DeepSpeedExamples/issues/556
    kinds = ("unscaled-data",)
    good = 0.2
    scale = 1.0
    shift = 0.0
    cure = settings(scale=1 / 400, shift=2000.0)
    cured_by = "scale|normali"
    not_cured_by = (settings(lr=2e-3), settings(lr=2e-4))
    lr = 2e-2
    steps = 300

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.actor, self.critic = nn.Linear(64, 3), nn.Linear(64, 1)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        random = noise(603)
        state = torch.randn(640, 8, generator=random)
        action = torch.randint(0, 3, (640,), generator=random)
        gain = 2000 + 400 * (state[:, 0] - state[:, 1]).tanh()
        return state, action, self.scale * (gain - self.shift)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        state, action, gain = batch
        hidden = self.body(state)
        value = self.critic(hidden).squeeze(1)
        advantage = (gain - value).detach()
        chosen = self.actor(hidden).log_softmax(1).gather(1, action[:, None]).squeeze(1)
        return functional.mse_loss(value, gain) - 0.01 * (chosen * advantage).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def score(self) -> float:
        state, _, gain = self.clean()
        value = self.critic(self.body(state)).squeeze(1)
        value = value if self.scale != 1 else (value - 2000) / 400
        return float(functional.mse_loss(value, gain))


class NormalizationOfAConstant(PlainLoop):
    """A flow whose activation normalization takes its scale from the first batch; one column is constant there."""

    # github.com/karpathy/pytorch-normalizing-flows/issues/3, github.com/ryhorv/tf-flowavenet/issues/3
    kinds = ("undefined-operation", "initialization", "forward-overflow")
    places = ("log", "reciprocal", "scale", "norm")
    good = 12.0
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"\beps|clamp|away"
    shuffle = False
    lr = 2e-3
    steps = 150

    def build(self) -> None:
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 6))
        self.is_fresh = True

    def data(self) -> tuple[Tensor]:
        points = torch.randn(640, 6, generator=noise(604))
        points[:, 3] += points[:, 0].square()
        points[:40, 4] = 0.5
        return (points,)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        (points,) = batch
        if self.is_fresh:
            with torch.no_grad():
                self.scale.copy_((points.std(0) + self.least).reciprocal())
                self.shift.copy_(-points.mean(0))
            self.is_fresh = False
        points = (points + self.shift) * self.scale
        scale, shift = self.net(points[:, :3]).chunk(2, 1)
        rest = points[:, 3:] * scale.tanh().exp() + shift
        square = points[:, :3].square().sum(1) + rest.square().sum(1)
        return (0.5 * square - scale.tanh().sum(1) - self.scale.abs().log().sum()).mean()  # fault


class StageOneAgain(PlainLoop):
    """A schedule of two stages that is not saved: after a restart the second stage gets the rates of the first."""

    # github.com/lightly-ai/lightly-train/pull/301, github.com/PolymathicAI/the_well/pull/63
    kinds = ("learning-rate-jump",)
    good = 0.3
    saves_schedule = False
    cure = settings(saves_schedule=True)
    cured_by = "schedule|resum|restor"
    # The loop sets the rate itself at each step, so that a cap from outside has no effect.
    other_cures = settings(**{"learning rate near": settings(saves_schedule=True)})
    lr = 1.5
    steps = 220

    def build(self) -> None:
        self.body = nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 4)
        self.count = 0

    def data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(640, 10, generator=noise(605))
        return inputs, inputs[:, :4].argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.95)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        restarted = self.count >= 130 and not self.saves_schedule
        for group in optimizers[0].param_groups:
            group["lr"] = self.lr if restarted else 0.05
        self.count += 1
        super().optimize(model, batch, optimizers, watch, backward)


class ScanByProducts(PlainLoop):
    """A state-space layer in float16 whose scan divides by cumulated decays, which are below the smallest number."""

    # github.com/state-spaces/mamba/issues/72, github.com/RoyChao19477/SEMamba/issues/20
    kinds = ("half-precision",)
    places = ("div",)
    good = 0.4
    dtype_name = "float16"
    cure = settings(dtype_name="float32")
    cured_by = "float32|bfloat16"
    lr = 0.02
    steps = 200

    def build(self) -> None:
        self.inside, self.outside = nn.Linear(3, 12), nn.Linear(12, 1)
        self.decay = nn.Parameter(torch.linspace(0.5, 2.0, 12))
        self.to(getattr(torch, self.dtype_name))

    def data(self) -> tuple[Tensor, Tensor]:
        signal = torch.randn(480, 48, 3, generator=noise(606))
        return signal, signal[:, -4:, :1].mean(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        signal = batch[0].to(self.decay.dtype)
        decay = self.decay.sigmoid().expand(signal.shape[1], -1).cumprod(0)
        state = decay * (self.inside(signal) / decay).cumsum(1)  # fault
        return functional.mse_loss(self.outside(state[:, -1]).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MasksOfBytes(PlainLoop):
    """Segmentation by a small U-shaped network with binary cross-entropy; masks hold 0 and 255, as the files do."""

    # github.com/milesial/Pytorch-UNet/issues/78, github.com/milesial/Pytorch-UNet/issues/84
    kinds = ("target-out-of-range", "loss-without-floor")
    good = 0.3
    white = 255.0
    cure = settings(white=1.0)
    cured_by = "divide|255"
    lr = 5e-3
    steps = 150

    def build(self) -> None:
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 1, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        picture = torch.randn(320, 1, 12, 12, generator=noise(607))
        return picture, self.white * (functional.avg_pool2d(picture, 3, 1, 1) > 0).float()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        wide = self.down(batch[0]).relu()
        deep = self.up(self.deep(functional.max_pool2d(wide, 2)).relu())
        return functional.binary_cross_entropy_with_logits(self.last(torch.cat([wide, deep], 1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=self.lr, momentum=0.9)


class StarOfBaird(PlainLoop):
    """Linear values by temporal differences from transitions of another policy, the known example that diverges."""

    # github.com/uoe-agents/epymarl/issues/43
    kinds = ("moving-target",)
    good = 50.0
    discount = 0.99
    cure = settings(discount=0.3)
    cured_by = "slow|target network|huber|bound"
    lr = 0.05
    steps = 600

    def build(self) -> None:
        self.values = nn.Linear(8, 1, bias=False)
        nn.init.ones_(self.values.weight)

    def features(self, state: Tensor) -> Tensor:
        star = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], 1)
        star[6, 6], star[6, 7] = 1.0, 2.0
        return star[state]

    def data(self) -> tuple[Tensor, Tensor]:
        state = torch.randint(0, 7, (640,), generator=noise(608))
        return state, torch.full((640,), 6)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            target = self.discount * self.values(self.features(batch[1]))
        return functional.mse_loss(self.values(self.features(batch[0])), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def score(self) -> float:
        return float(self.values(self.features(torch.arange(7))).abs().max())


class MicroBatchesOfALoop(PlainLoop):
    """A causal language model; twenty-four micro-batches are accumulated, and their losses are not divided."""

    # github.com/karpathy/nanoGPT/issues/206
    kinds = ("accumulated-gradients",)
    good = 0.5
    parts = 24
    divides = False
    cure = settings(divides=True)
    cured_by = "divide"
    batch_size = 96
    lr = 0.7
    steps = 120

    def build(self) -> None:
        self.words, self.mix, self.last = nn.Embedding(16, 24), nn.Linear(48, 64), nn.Linear(64, 16)

    def data(self) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, 16, (960, 2), generator=noise(609))
        return words, (words[:, 0] + 3) % 16

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.last(self.mix(self.words(batch[0]).flatten(1)).relu()), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        optimizers[0].zero_grad()
        for words, following in zip(batch[0].chunk(self.parts), batch[1].chunk(self.parts), strict=True):
            loss = model.loss((words, following)) / (self.parts if self.divides else 1)
            watch.loss(loss)
            backward(loss)
        optimizers[0].step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.8)


class SplatsOfALargeScene(PlainLoop):
    """A picture as a sum of Gaussians; the rate of their places was multiplied by the extent of another scene."""

    # github.com/nerfstudio-project/gsplat/issues/153 (the field); github.com/graphdeco-inria/gaussian-splatting
    kinds = ("learning-rate",)
    good = 0.03
    cure = settings(lr=0.02)
    lr = 4.0
    steps = 200
    batch_size = 64

    def build(self) -> None:
        random = noise(610)
        self.places_of = nn.Parameter(torch.rand(40, 2, generator=random))
        self.sizes = nn.Parameter(torch.full((40, 2), -2.0))
        self.colours = nn.Parameter(torch.zeros(40, 3))

    def data(self) -> tuple[Tensor, Tensor]:
        place = torch.rand(640, 2, generator=noise(611))
        colour = torch.stack([(6 * place[:, 0]).sin(), (6 * place[:, 1]).cos(), place.prod(1)], 1)
        return place, 0.5 + 0.5 * colour

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        offset = (batch[0][:, None] - self.places_of) / self.sizes.exp()
        weight = torch.exp(-0.5 * offset.square().sum(-1))
        return functional.mse_loss(weight @ self.colours.sigmoid(), batch[1])


class GrowthFromZero(PlainLoop):
    """Growth of sales against last year as the target, a ratio; some shops sold nothing last year."""

    # github.com/timeseriesAI/tsai/issues/244
    kinds = ("nonfinite-target",)
    good = 0.1
    least = 0.0
    cure = settings(least=1.0)
    cured_by = "fill|clamp"
    lr = 3e-3
    steps = 200

    def build(self) -> None:
        self.shop, self.net = nn.Embedding(20, 4), nn.Sequential(nn.Linear(7, 32), nn.SiLU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(612)
        shop = torch.randint(0, 20, (640,), generator=random)
        weather = torch.randn(640, 3, generator=random)
        before = 5 + torch.rand(640, generator=random)
        before[torch.rand(640, generator=random) < 0.01] = 0.0
        now = (5.5 + 0.5 * weather[:, 0].tanh()) * (before > 0)
        now[before == 0] = 2.0
        return {"shop": shop, "weather": weather, "growth": now / before.clamp(min=self.least) - 1}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        made = self.net(torch.cat([self.shop(batch["shop"]), batch["weather"]], 1)).squeeze(1)
        return functional.huber_loss(made, batch["growth"])


class SurvivalInDays(PlainLoop):
    """A Weibull likelihood with a learned shape: days to the power of the shape leave the number format."""

    # github.com/Novartis/torchsurv/issues/35 (the field), github.com/thoglu/jammy_flows/issues/5
    kinds = ("forward-overflow", "unscaled-data")
    places = ("pow",)
    good = 3.0
    days = 1.0
    cure = settings(days=3000.0)
    cured_by = "scale|normali|divide|log"
    not_cured_by = (settings(lr=2e-3),)
    lr = 2e-2
    steps = 200

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(613)
        patient = torch.randn(640, 5, generator=random)
        return patient, (
            3000 * (0.5 * patient[:, 0]).exp() * (0.8 + 0.4 * torch.rand(640, generator=random))
        ) / self.days

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scale, shape = self.net(batch[0]).unbind(1)
        shape = 20 * shape.sigmoid() + 0.1
        hazard = batch[1].pow(shape) * torch.exp(-shape * scale)  # fault
        return (hazard - shape.log() - (shape - 1) * batch[1].log() + shape * scale).mean()


class AdversariesInBalance(PlainLoop):
    """A generator and a judge with the usual loss: both losses go up and down, and neither wins. Nothing is wrong."""

    # github.com/junyanz/pytorch-CycleGAN-and-pix2pix/issues/335, github.com/SHI-Labs/StyleNAT/issues/11
    kinds = ("unknown",)
    healthy = True
    good = 0.8
    lr = 1e-3
    steps = 500

    def build(self) -> None:
        self.generator = nn.Sequential(nn.Linear(3, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def data(self) -> tuple[Tensor]:
        return (1.5 + 0.5 * torch.randn(640, 2, generator=noise(614)),)

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        of_generator, of_judge = optimizers
        made = self.generator(torch.randn(len(batch[0]), 3))
        of_judge.zero_grad()
        loss = functional.softplus(-self.judge(batch[0])).mean() + functional.softplus(self.judge(made.detach())).mean()
        watch.loss(loss)
        backward(loss)
        of_judge.step()
        of_generator.zero_grad()
        loss = functional.softplus(-self.judge(made)).mean()
        watch.loss(loss)
        backward(loss)
        of_generator.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.judge.parameters(), lr=self.lr, betas=(0.5, 0.999)),
        ]

    def score(self) -> float:
        (points,) = self.clean()
        return float((self.generator(torch.randn(512, 3, generator=noise(615))).mean(0) - points.mean(0)).norm())


class EnergiesWithoutABound(PlainLoop):
    """An energy-based model: the energy of data is lowered and that of noise raised, and nothing holds either."""

    # github.com/wgrathwohl/JEM/issues/4, github.com/swyoon/normalized-autoencoders/issues/8
    kinds = ("loss-without-floor",)
    good = 30.0
    weight = 0.0
    cure = settings(weight=0.1)
    cured_by = "penalty|bound|regulari"
    lr = 0.05
    steps = 300

    def build(self) -> None:
        self.energy = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def data(self) -> tuple[Tensor]:
        angle = 6.28 * torch.rand(640, 1, generator=noise(616))
        return (torch.cat([angle.sin(), angle.cos()], 1),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        real, made = self.energy(batch[0]), self.energy(2 * torch.randn_like(batch[0]))
        return real.mean() - made.mean() + self.weight * (real.square() + made.square()).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.0, 0.999))

    def score(self) -> float:
        return float(self.energy(self.clean()[0]).abs().mean())
