"""Small versions of what is done to large models: rewards on text, flow matching, queues, margins, growth, merging."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss, normalize, one_hot

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, ring, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import (
    Block,
    LanguageModel,
    MakeOptimizer,
    Residual,
    ScenarioModule,
    adam,
    perceptron,
    sgd,
)
from benchmarks.scenarios.rising_losses import Objected, errors, plain, ramp, squared, with_steps


class RewardedLetters(Objected):
    """A language model that is rewarded for vowels, from text that its first version wrote.

    Args:
        optimizer: Builds the optimizer.
        clipped: Whether ratios are clipped (Schulman et al. 2017).
        penalty: Weight of the divergence from the first version, by ``exp(x) - x - 1`` of log ratios (Schulman 2020).
        options: Arguments of `ScenarioModule`.
    """

    def __init__(self, optimizer: MakeOptimizer, clipped: bool, penalty: float, **options: Any) -> None:
        letters = text()[1]
        model = LanguageModel(letters, 24, nn.GRU(24, 24, batch_first=True))
        super().__init__(model, plain, optimizer, before=lines(150, 8, 16), **options)
        self.first = copy.deepcopy(model).requires_grad_(False)
        self.clipped, self.penalty = clipped, penalty

    def loss(self, batch: Any) -> Tensor:
        """Return the clipped objective with its penalty; before the run, the cross-entropy of the text."""
        if not hasattr(self, "first"):
            return plain(self.network, batch)
        before, now = (n(batch[0]).log_softmax(1) for n in (self.first, self.network))
        policy: Any = torch.distributions.Categorical(logits=before)
        chosen = policy.sample()[:, None]
        reward = (chosen % 5 == 0).float()
        gain = (reward - reward.mean()) / (reward.std() + 1e-4)
        change = (now - before).gather(1, chosen)
        ratio = change.exp()
        bounded = torch.minimum(gain * ratio, gain * ratio.clamp(0.8, 1.2)) if self.clipped else gain * ratio
        loss: Tensor = (self.penalty * (ratio - change - 1) - bounded).mean()
        return loss


@healthy("rewarded text")
def letters_rewarded(seed: int) -> Setup:
    """Clipped ratios and a penalty of the divergence: the loss starts at zero."""
    return Setup(RewardedLetters(adam(0.001), True, 0.1), lines(200, 8, 12))


@exploding("rewarded text")
def letters_rewarded_without_clipping(seed: int) -> Setup:
    """Ratios without clipping and a larger penalty, by gradient descent at a rate that rises by four percent a step."""
    return Setup(
        RewardedLetters(sgd(0.5), False, 1.0, schedule=lambda step: 1.04**step),
        lines(300, 8, 12),
    )


class StraightPaths(ScenarioModule):
    """Velocities from noise to points of a ring (Lipman et al. 2023), at times that are mostly in the middle."""

    def __init__(self, optimizer: MakeOptimizer, **options: Any) -> None:
        super().__init__(perceptron([3, 64, 64, 2], nn.SiLU), mse_loss, optimizer, **options)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error of the velocities."""
        points, noise = batch[0], batch[1][:, :2]
        time = torch.randn(len(points), 1).sigmoid()
        between = (1 - time) * noise + time * points
        return mse_loss(self.network(torch.cat([between, time], 1)), points - noise)


@healthy("flow matching")
def straight_paths(seed: int) -> Setup:
    """AdamW, and batches of 16 that double every 60 steps."""
    batches = [ring(1, 16 * 2 ** (step // 60))[0] for step in range(280)]
    return Setup(StraightPaths(lambda p: torch.optim.AdamW(p, 0.003, betas=(0.9, 0.95))), batches)


@exploding("flow matching")
def straight_paths_rate_rises(seed: int) -> Setup:
    """Descent with momentum at a rate that rises by three percent a step."""
    return Setup(StraightPaths(sgd(0.01, momentum=0.9), schedule=lambda step: 1.03**step), ring(320, 64))


class Queue(ScenarioModule):
    """Two noisy views of an image against a queue of older ones (He et al. 2020), which begins empty.

    Args:
        optimizer: Builds the optimizer.
        normalized: Whether codes have length one.
        emptied: Steps at which the queue is emptied.
        options: Arguments of `ScenarioModule`.
    """

    def __init__(
        self, optimizer: MakeOptimizer, normalized: bool = True, emptied: tuple[int, ...] = (), **options: Any
    ) -> None:
        super().__init__(perceptron([64, 64, 16]), mse_loss, optimizer, **options)
        self.key = copy.deepcopy(self.network).requires_grad_(False)
        self.normalized, self.emptied = normalized, emptied
        self.queue = torch.zeros(0, 16)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Move the encoder of keys after the other, and empty the queue when that is due."""
        super().on_train_batch_start(batch, batch_idx)
        with torch.no_grad():
            for mean, now in zip(self.key.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 0.05)
        if batch_idx in self.emptied:
            self.queue = torch.zeros(0, 16)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy of the right key among those of the batch and the queue."""
        query, key = self.network(self._view(batch[0])), self.key(self._view(batch[0]))
        if self.normalized:
            query, key = 5 * normalize(query), normalize(key)
        keys = torch.cat([key, self.queue])
        self.queue = keys[:512].detach()
        return cross_entropy(query @ keys.T, torch.arange(len(query)))

    def _view(self, images: Tensor) -> Tensor:
        return images + 0.2 * torch.randn_like(images)


@healthy("queues of negatives")
def queue_filled_and_emptied(seed: int) -> Setup:
    """A queue that fills, and is emptied at step 150: the loss rises with the logarithm of its length."""
    return Setup(Queue(adam(0.002), emptied=(150,)), drawn(digits(), 300, 8))


@exploding("queues of negatives")
def queue_of_unbounded_codes(seed: int) -> Setup:
    """Codes of any length, by descent with momentum at a rate that rises by four percent a step."""
    module = Queue(sgd(0.01, momentum=0.9), normalized=False, schedule=lambda step: 1.04**step)
    return Setup(module, drawn(digits(), 300, 16))


def _with_slope(network: nn.Module, batch: Any) -> Tensor:
    """Return the squared error, and a penalty of the slope with the batch's third part as its weight."""
    if not batch[2]:
        return squared(network, batch)
    with torch.enable_grad():
        inputs = batch[0].clone().requires_grad_()
        slope = torch.autograd.grad(network(inputs).sum(), inputs, create_graph=True)[0]
    return squared(network, batch) + batch[2] * slope.square().sum(1).mean()  # type: ignore[no-any-return]


@healthy("lazy regularization")
def slope_penalized_at_every_eighth_step(seed: int) -> Setup:
    """A penalty of the slope counts eight times as much at every eighth step (Karras et al. 2020)."""
    batches = with_steps(drawn(diabetes(scaled=True), 300, 32), lambda step: 8.0 * (step % 8 == 0))
    return Setup(Objected(perceptron([10, 48, 1], nn.Softplus), _with_slope, adam(0.003), squared), batches)


@exploding("lazy regularization", begins=100)
def slope_penalized_too_much(seed: int) -> Setup:
    """A penalty of the slope sets in at step 100 and rises by four percent a step, by gradient descent."""
    batches = with_steps(
        drawn(diabetes(scaled=True), 400, 32), lambda step: 0.0 if step < 100 else 0.5 * 1.04 ** (step - 100)
    )
    return Setup(Objected(perceptron([10, 48, 1], nn.Softplus), _with_slope, sgd(0.01), squared), batches)


class Angles(nn.Module):
    """Scaled cosines between a code and one vector per class."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron([64, 64, 32])
        self.classes = nn.Parameter(0.1 * torch.randn(10, 32))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the cosines, shape ``(batch, 10)``."""
        return linear(normalize(self.body(inputs)), normalize(self.classes))


def _with_margin(scale: float) -> Callable[[nn.Module, Any], Tensor]:
    """Return a loss in which the right class has to lead by the batch's third part (Wang et al. 2018)."""

    def objective(network: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(scale * (network(batch[0]) - batch[2] * one_hot(batch[1], 10)), batch[1])

    return objective


@healthy("margins of angles")
def margin_grows(seed: int) -> Setup:
    """The margin grows from nothing to 0.6 times a scale of 30; judged by wrong answers."""
    batches = with_steps(drawn(digits(), 300, 32), ramp(40, 240, 0.0, 0.6))
    return Setup(Objected(Angles(), _with_margin(30.0), adam(0.002), errors), batches)


@exploding("margins of angles")
def margin_grows_at_a_rising_rate(seed: int) -> Setup:
    """Plain products in place of cosines, a growing margin, and a rate that rises by three percent a step."""
    batches = with_steps(drawn(digits(), 350, 32), ramp(40, 240, 0.0, 0.6))
    module = Objected(
        perceptron([64, 64, 10]), _with_margin(1.0), sgd(0.05, momentum=0.9), schedule=lambda step: 1.03**step
    )
    return Setup(module, batches)


class Growing(ScenarioModule):
    """A stack of blocks on text, of which more take part from time to time.

    Args:
        block: Builds a block.
        optimizer: Builds the optimizer.
        every: Number of steps between two growths.
        copied: Whether a block starts as a copy of the one before it (Gong et al. 2019), and not at random.
        options: Arguments of `ScenarioModule`.
    """

    def __init__(
        self, block: Callable[[], nn.Module], optimizer: MakeOptimizer, every: int, copied: bool, **options: Any
    ) -> None:
        letters = text()[1]
        self.blocks = [block() for _ in range(8)]
        super().__init__(LanguageModel(letters, 24, nn.Sequential(*self.blocks)), cross_entropy, optimizer, **options)
        self.every, self.copied = every, copied
        self.network.body = nn.ModuleList(self.blocks)
        self.used = 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Add a block when one is due."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx and batch_idx % self.every == 0 and self.used < len(self.blocks):
            if self.copied:
                self.blocks[self.used].load_state_dict(self.blocks[self.used - 1].state_dict())
            self.used += 1

    def loss(self, batch: Any) -> Tensor:
        """Return the cross-entropy by the blocks that take part."""
        network: Any = self.network
        hidden = network.embedding(batch[0])
        for block in self.blocks[: self.used]:
            hidden = block(hidden)
        return cross_entropy(network.head(hidden).flatten(0, 1), batch[1])


@healthy("growing networks")
def blocks_copied(seed: int) -> Setup:
    """A transformer gets another block every 50 steps, a copy of its last."""
    return Setup(Growing(lambda: Block(24), adam(0.003), 50, True), lines(320, 8, 16))


@healthy("growing networks")
def blocks_at_random(seed: int) -> Setup:
    """The same with blocks at random, without normalization."""
    return Setup(Growing(lambda: Block(24, False), adam(0.002), 40, False), lines(320, 8, 16))


@exploding("growing networks")
def loud_blocks_added(seed: int) -> Setup:
    """A block of doubled outputs is added every 30 steps, by gradient descent."""

    def block() -> nn.Module:
        inner = perceptron([24, 48, 24], gain=2.0)
        return Residual(inner)

    return Setup(Growing(block, sgd(0.3), 30, False), lines(320, 8, 16))


def _inflated(steps: int, rate: float) -> list[Any]:
    return [(x, (3 + y) * rate**step) for step, (x, y) in enumerate(drawn(diabetes(scaled=True), steps, 16))]


def _relative(network: nn.Module, batch: Any) -> Tensor:
    return squared(network, batch) / batch[1].square().mean()  # type: ignore[no-any-return]


@healthy("inflation")
def prices_inflate(seed: int) -> Setup:
    """Targets rise by half a percent a step, fourfold; judged by the relative error."""
    return Setup(Objected(perceptron([10, 32, 1]), squared, adam(0.005), _relative), _inflated(280, 1.005))


@healthy("inflation")
def counts_inflate(seed: int) -> Setup:
    """Counts rise from two to twenty on average, by their likelihood and an exponential; judged by relative error."""
    data = drawn(diabetes(scaled=True), 280, 32)
    level = ramp(20, 260, math.log(2.0), math.log(20.0))
    batches = [(x, torch.poisson((0.3 * y + level(step)).exp())) for step, (x, y) in enumerate(data)]

    def likelihood(network: nn.Module, batch: Any) -> Tensor:
        said = network(batch[0])
        return (said.exp() - batch[1] * said).mean()  # type: ignore[no-any-return]

    def relative(network: nn.Module, batch: Any) -> Tensor:
        return (network(batch[0]).exp() - batch[1]).square().mean() / batch[1].square().mean()  # type: ignore[no-any-return]

    return Setup(Objected(perceptron([10, 32, 1]), likelihood, adam(0.003), relative), batches)


@exploding("inflation")
def prices_and_inputs_inflate(seed: int) -> Setup:
    """Inputs and targets rise by two percent a step, by gradient descent."""
    batches = [(x * 1.02**step, y) for step, (x, y) in enumerate(_inflated(320, 1.02))]
    return Setup(Objected(perceptron([10, 32, 1]), squared, sgd(0.01), _relative), batches)


def _with_new_letters(module: ScenarioModule, size: float) -> None:
    """Set every third row of the embedding anew."""
    with torch.no_grad():
        rows = module.network.get_parameter("embedding.weight")[::3]
        rows.copy_(size * torch.randn_like(rows))


@healthy("new words")
def letters_set_anew(seed: int) -> Setup:
    """At step 100 a third of the embedding's rows are set anew."""
    model = LanguageModel(text()[1], 24, nn.Sequential(Block(24), Block(24)))
    events = {100: lambda module: _with_new_letters(module, 1.0)}
    return Setup(ScenarioModule(model, cross_entropy, adam(0.003), events=events), lines(240, 8, 16))


@exploding("new words", begins=100)
def letters_set_anew_too_large(seed: int) -> Setup:
    """The same a thousand times as large, in a network without normalization, by descent with momentum."""
    model = LanguageModel(text()[1], 24, nn.Sequential(Block(24, False), Block(24, False)))
    events = {100: lambda module: _with_new_letters(module, 1000.0)}
    module = ScenarioModule(model, cross_entropy, sgd(0.05, momentum=0.9), events=events)
    return Setup(module, lines(240, 8, 16))


@healthy("merged weights")
def merged_with_a_stranger(seed: int) -> Setup:
    """At step 120 the weights become the mean with those of a network that learned other labels."""
    other = Objected(perceptron([64, 64, 10]), plain, adam(0.003), before=drawn(digits(), 200, 32)).network

    def merge(module: ScenarioModule) -> None:
        with torch.no_grad():
            for mine, its in zip(module.network.parameters(), other.parameters(), strict=True):
                mine.lerp_(its.flip(0), 0.5)

    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.003), events={120: merge})
    return Setup(module, drawn(digits(), 260, 32))


@healthy("centered teachers")
def teacher_sharpens(seed: int) -> Setup:
    """Two views agree on classes that a centered mean of the weights sharpens more and more (Caron et al. 2021)."""
    network = perceptron([64, 64, 32])
    teacher = copy.deepcopy(network).requires_grad_(False)
    center = torch.zeros(32)

    class Student(Objected):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                for mean, now in zip(teacher.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(now, 0.02)
                center.lerp_(teacher(batch[0]).mean(0), 0.1)

    def agreement(n: nn.Module, b: Any) -> Tensor:
        one, other = (b[0] + 0.2 * torch.randn_like(b[0]) for _ in range(2))
        wanted = ((teacher(other) - center) / b[2]).softmax(1)
        return -(wanted * (n(one) / 0.1).log_softmax(1)).sum(1).mean()  # type: ignore[no-any-return]

    batches = with_steps(drawn(digits(), 280, 32), ramp(20, 200, 0.1, 0.03))
    return Setup(Student(network, agreement, adam(0.002)), batches)
