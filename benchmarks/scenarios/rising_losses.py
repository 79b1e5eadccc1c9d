"""Losses that rise by design: weights and penalties that are ramped, harder data, smoothing, noise, adversaries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, Variational, adam, perceptron, sgd

Objective = Callable[[nn.Module, Any], Tensor]


class Objected(ScenarioModule):
    """A network with any objective, judged by another number where the objective is meant to rise.

    Args:
        network: What is trained.
        objective: The loss of the network and a batch.
        optimizer: Builds the optimizer.
        judged: The number that the outcome is judged by, None for the objective.
        trained: Number of steps of Adam on the objective before the run, on batches of `before`.
        before: Batches of these steps.
        options: Arguments of `ScenarioModule`.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: MakeOptimizer,
        judged: Objective | None = None,
        before: Any = (),
        **options: Any,
    ) -> None:
        super().__init__(network, mse_loss, optimizer, **options)
        self.objective, self.judged = objective, judged
        trainer = torch.optim.Adam(network.parameters(), lr=0.003)
        for batch in before:
            trainer.zero_grad()
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
            trainer.step()
        network.zero_grad(set_to_none=True)

    def loss(self, batch: Any) -> Tensor:
        """Return the objective."""
        return self.objective(self.network, batch)

    def damage(self, batch: Any, loss: float) -> float:
        """Return what the outcome is judged by."""
        if self.judged is None:
            return loss
        with torch.no_grad():
            return float(self.judged(self.network, batch))


def errors(network: nn.Module, batch: Any) -> Tensor:
    """Return one plus the share of samples that are classified wrongly, in hundredths."""
    return 1 + 100 * (network(batch[0]).argmax(1) != batch[1]).float().mean()  # type: ignore[no-any-return]


def with_steps(batches: list[Any], value: Callable[[int], float], begins: int = 0) -> list[Any]:
    """Return batches with a value that depends on the step as their third part."""
    return [(*batch, value(step)) for step, batch in enumerate(batches, begins)]


def ramp(first: int, last: int, low: float, high: float) -> Callable[[int], float]:
    """Return a value that goes from low to high between two steps, in a straight line."""
    return lambda step: low + (high - low) * min(max((step - first) / (last - first), 0.0), 1.0)


def plain(network: nn.Module, batch: Any) -> Tensor:
    """Return the cross-entropy, whatever the batch says besides."""
    return cross_entropy(network(batch[0]), batch[1])


def squared(network: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared error, whatever the batch says besides."""
    return mse_loss(network(batch[0]), batch[1])


@healthy("ramped weights")
def weight_ramped_a_hundredfold(seed: int) -> Setup:
    """The loss counts a hundredth at first and in full from step 150 on, by Adam."""
    batches = with_steps(drawn(diabetes(scaled=True), 260, 16), ramp(20, 150, 0.01, 1.0))
    module = Objected(perceptron([10, 32, 1]), lambda n, b: b[2] * squared(n, b), adam(0.002), squared)
    return Setup(module, batches)


@healthy("ramped weights")
def consistency_ramped(seed: int) -> Setup:
    """Agreement with an average of the weights counts more and more (Tarvainen and Valpola 2017)."""

    class Teacher(Objected):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                for mean, now in zip(teacher.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(now, 0.02)

    network = perceptron([64, 64, 10])
    teacher = copy.deepcopy(network).requires_grad_(False)

    def agreement(n: nn.Module, b: Any) -> Tensor:
        noisy = b[0] + 0.3 * torch.randn_like(b[0])
        return plain(n, b) + b[2] * (n(noisy).softmax(1) - teacher(b[0]).softmax(1)).square().sum(1).mean()  # type: ignore[no-any-return]

    batches = with_steps(drawn(digits(), 280, 24), lambda step: 50 * 2.718 ** (-5 * (1 - min(step / 150, 1)) ** 2))
    return Setup(Objected(network, agreement, adam(0.003), plain), batches)


@healthy("ramped weights")
def divergence_weight_to_four(seed: int) -> Setup:
    """The divergence of a code counts nothing at first and four times at the end, after much was stored in it."""
    network = nn.Sequential(perceptron([64, 48, 16]), perceptron([8, 48, 64]))
    inputs = [batch[0] for batch in drawn(digits(), 320, 32)]
    weight = ramp(100, 220, 0.0, 4.0)
    return Setup(Variational(network, mse_loss, adam(0.004)), [(x, weight(step)) for step, x in enumerate(inputs)])


@healthy("ramped weights")
def sparsity_ramped(seed: int) -> Setup:
    """The sum of absolute weights counts more and more, until it is most of the loss."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        size = torch.stack([one.abs().sum() for one in n.parameters()]).sum()
        return plain(n, b) + b[2] * size  # type: ignore[no-any-return]

    batches = with_steps(drawn(digits(), 300, 32), ramp(60, 240, 0.0, 0.02))
    return Setup(Objected(perceptron([64, 64, 10]), objective, adam(0.003), plain), batches)


@exploding("ramped weights")
def weight_ramped_past_the_limit(seed: int) -> Setup:
    """The loss counts by three percent more at each step, by gradient descent."""
    batches = with_steps(drawn(diabetes(scaled=True), 400, 16), lambda step: 0.01 * 1.03**step)
    return Setup(Objected(perceptron([10, 32, 1]), lambda n, b: b[2] * squared(n, b), sgd(0.1), squared), batches)


@healthy("harder data")
def smoothing_switched_on(seed: int) -> Setup:
    """A trained network gets smoothed labels from step 60 on: the loss is thirty times as large at once."""
    data = drawn(digits(), 800, 32)

    def objective(n: nn.Module, b: Any) -> Tensor:
        return cross_entropy(n(b[0]), b[1], label_smoothing=b[2])

    batches = with_steps(data[550:], lambda step: 0.2 * (step >= 60))
    before = with_steps(data[:550], lambda step: 0.0)
    return Setup(Objected(perceptron([64, 64, 10]), objective, adam(0.001), errors, before), batches)


@healthy("harder data")
def dropout_rises(seed: int) -> Setup:
    """Units are dropped at a share that grows from nothing to seven in ten (Morerio et al. 2017)."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        hidden = nn.functional.dropout(n.get_submodule("0")(b[0]).relu(), b[2])
        return cross_entropy(n.get_submodule("2")(hidden), b[1])

    data = drawn(digits(), 700, 32)
    batches = with_steps(data[400:], ramp(40, 260, 0.0, 0.7))
    before = with_steps(data[:400], lambda step: 0.0)
    return Setup(Objected(perceptron([64, 96, 10]), objective, adam(0.002), plain, before), batches)


@healthy("harder data")
def samples_mixed_from_a_step_on(seed: int) -> Setup:
    """From step 90 on samples are mixed in pairs (Zhang et al. 2018)."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        share = 1 - 0.5 * b[2] * torch.rand(()).item()
        labels = one_hot(b[1], 10).float()
        return cross_entropy(
            n(share * b[0] + (1 - share) * b[0].flip(0)), share * labels + (1 - share) * labels.flip(0)
        )

    batches = with_steps(drawn(digits(), 280, 32), lambda step: float(step >= 90))
    return Setup(Objected(perceptron([64, 64, 10]), objective, adam(0.005), plain), batches)


@healthy("harder data")
def more_pixels(seed: int) -> Setup:
    """Images of 4, 16 and 64 pixels in turn, and a loss that is a sum over pixels and samples."""
    network = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))
    batches = []
    for step, (x, _) in enumerate(drawn(digits(), 270, 32)):
        images = nn.functional.adaptive_avg_pool2d(x.view(-1, 1, 8, 8), 2 ** (1 + step // 90))
        batches.append((images + 0.3 * torch.randn_like(images), images))

    def per_pixel(n: nn.Module, b: Any) -> Tensor:
        return 256 * squared(n, b)

    def objective(n: nn.Module, b: Any) -> Tensor:
        return mse_loss(n(b[0]), b[1], reduction="sum")

    return Setup(Objected(network, objective, adam(0.003), per_pixel), batches)


@healthy("harder data")
def noise_rises(seed: int) -> Setup:
    """An autoencoder of images with more and more noise."""
    batches = [
        (x + ramp(30, 250, 0.0, 1.5)(step) * torch.randn_like(x), x)
        for step, (x, _) in enumerate(drawn(digits(), 300, 32))
    ]
    return Setup(ScenarioModule(perceptron([64, 24, 64]), mse_loss, adam(0.003)), batches)


@healthy("harder data")
def attacks_grow(seed: int) -> Setup:
    """A trained network sees inputs that are moved against it, further and further (Goodfellow et al. 2015)."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        with torch.enable_grad():
            inputs = b[0].clone().requires_grad_()
            slope = torch.autograd.grad(cross_entropy(n(inputs), b[1]), inputs)[0]
        return cross_entropy(n(b[0] + b[2] * slope.sign()), b[1])

    data = drawn(digits(), 600, 32)
    batches = with_steps(data[350:], ramp(20, 200, 0.0, 0.1))
    before = with_steps(data[:350], lambda step: 0.0)
    return Setup(Objected(perceptron([64, 64, 10]), objective, adam(0.002), errors, before), batches)


@healthy("harder data")
def domains_shift(seed: int) -> Setup:
    """Inputs of a trained regression are stretched and turned bit by bit, up to three times their size."""
    data = drawn(diabetes(scaled=True), 700, 32)
    turn = torch.linalg.qr(torch.randn(10, 10))[0]
    share = ramp(40, 260, 0.0, 1.0)
    batches = [((1 - share(step)) * x + 3 * share(step) * x @ turn, y) for step, (x, y) in enumerate(data[400:])]
    return Setup(Objected(perceptron([10, 48, 1]), squared, adam(0.002), before=data[:400]), batches)


@exploding("harder data")
def domains_shift_too_far(seed: int) -> Setup:
    """Inputs are stretched by two percent at each step, by gradient descent."""
    batches = [(x * 1.02**step, y) for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 350, 32))]
    return Setup(ScenarioModule(perceptron([10, 32, 1]), mse_loss, sgd(0.03)), batches)
