"""Optimizers beyond gradient descent and Adam: signs, factored moments, orthogonal updates, tiny epsilons."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Adadelta, Adagrad, Adam, NAdam, RMSprop

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, perceptron
from benchmarks.scenarios.tensorwise import TensorwiseOptimizer


class Signed(TensorwiseOptimizer):
    """Steps by the sign of a moving average (Chen et al. 2023), or by its orthogonal factor (Jordan et al. 2024).

    Args:
        parameters: The parameters.
        lr: Learning rate.
        orthogonal: Whether matrices step by the orthogonal factor of their average.
        weight_decay: Share of the weights that is taken off, per unit of the learning rate.
    """

    def __init__(self, parameters: Any, lr: float, orthogonal: bool = False, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, orthogonal=orthogonal, weight_decay=weight_decay)

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Step by the sign or the orthogonal factor of the average."""
        average = state.setdefault("average", torch.zeros_like(tensor))
        direction = average.lerp(gradient, 0.1)
        average.lerp_(gradient, 0.01)
        update = _orthogonal(direction) if group["orthogonal"] and tensor.ndim == 2 else direction.sign()
        tensor.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def _orthogonal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(torch.nan_to_num(matrix), full_matrices=False)
    product: Tensor = left @ right
    return product


class Factored(TensorwiseOptimizer):
    """Second moments by rows and columns, and updates limited by their mean square (Shazeer and Stern 2018).

    Args:
        parameters: The parameters.
        lr: Learning rate, relative to the size of each weight.
        limit: Largest mean square of an update.
    """

    def __init__(self, parameters: Any, lr: float, limit: float = 1.0) -> None:
        super().__init__(parameters, lr=lr, limit=limit)

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Step by the gradient over the root of its second moments."""
        square = gradient.square() + 1e-30
        if tensor.ndim == 2:
            rows = state.setdefault("rows", square.mean(1)).lerp_(square.mean(1), 0.05)
            columns = state.setdefault("columns", square.mean(0)).lerp_(square.mean(0), 0.05)
            square = rows[:, None] * columns / rows.mean()
        else:
            square = state.setdefault("all", square.clone()).lerp_(square, 0.05)
        update = gradient / square.sqrt().clamp(min=1e-12)
        update /= (update.square().mean().sqrt() / group["limit"]).clamp(min=1.0)
        tensor.sub_(update, alpha=group["lr"] * float(tensor.square().mean().sqrt().clamp(min=1e-3)))


def _digits(optimizer: Any, size: int = 32, steps: int = 250) -> Setup:
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, optimizer), drawn(digits(), steps, size))


@healthy("optimizers")
def signs(seed: int) -> Setup:
    """Steps by signs, with weight decay."""
    return _digits(partial(Signed, lr=0.001, weight_decay=0.1))


@healthy("optimizers")
def orthogonal_updates(seed: int) -> Setup:
    """Orthogonal steps: each one changes the weights by much."""
    return _digits(partial(Signed, lr=0.01, orthogonal=True))


@healthy("optimizers")
def factored_moments(seed: int) -> Setup:
    """Updates relative to the size of the weights."""
    return _digits(partial(Factored, lr=0.05))


@healthy("optimizers")
def root_mean_square(seed: int) -> Setup:
    """RMSprop, whose first steps are ten times as large as later ones."""
    return _digits(partial(RMSprop, lr=0.001))


@healthy("optimizers")
def accumulated_squares(seed: int) -> Setup:
    """Adagrad, which starts with steps of a tenth."""
    return _digits(partial(Adagrad, lr=0.1))


@healthy("optimizers")
def accelerated_adam(seed: int) -> Setup:
    """Adam with Nesterov's momentum, in batches of two."""
    return _digits(partial(NAdam, lr=0.001), size=2, steps=300)


@healthy("optimizers")
def without_learning_rate(seed: int) -> Setup:
    """Adadelta, whose steps start at next to nothing."""
    return _digits(partial(Adadelta, lr=1.0))


@healthy("optimizers")
def signs_on_text(seed: int) -> Setup:
    """A transformer by signs."""
    _, letters = text()
    body = nn.Sequential(*(Block(32) for _ in range(2)))
    module = ScenarioModule(LanguageModel(letters, 32, body), cross_entropy, partial(Signed, lr=0.001))
    return Setup(module, lines(150, 8, 16))


@exploding("optimizers")
def signs_rate_too_high(seed: int) -> Setup:
    """Steps by signs with the learning rate of gradient descent."""
    return _digits(partial(Signed, lr=0.3), steps=200)


@exploding("optimizers")
def orthogonal_rate_rises(seed: int) -> Setup:
    """Orthogonal steps whose learning rate rises by four percent a step, in a regression."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, partial(Signed, lr=0.003, orthogonal=True))
    module.schedule = lambda step: 1.04**step
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


@exploding("optimizers")
def root_mean_square_rate_too_high(seed: int) -> Setup:
    """RMSprop with the learning rate of gradient descent."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, partial(RMSprop, lr=0.3))
    return Setup(module, drawn(diabetes(scaled=True), 200, 32))


@exploding("optimizers")
def second_moment_forgets(seed: int) -> Setup:
    """Adam whose second moment is that of the last two steps, and whose learning rate is high."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, partial(Adam, lr=0.5, betas=(0.9, 0.5)))
    return Setup(module, drawn(diabetes(scaled=True), 300, 8))


@exploding("optimizers")
def factored_without_limit(seed: int) -> Setup:
    """Updates relative to the weights, which then grow by half at each step."""
    return _digits(partial(Factored, lr=0.5), steps=200)
