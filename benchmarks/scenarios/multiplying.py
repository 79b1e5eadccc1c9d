"""Products of matrices, polynomials, domains, compressed gradients, rates by layer, transport between clouds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.optim import SGD, RMSprop

from benchmarks.scenarios.data import Batch, diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, half_precision, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.tensorwise import TensorwiseOptimizer


def _product(width: int, depth: int, scale: float) -> nn.Sequential:
    layers = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=scale / width**0.5)
    return nn.Sequential(*layers)


def _mapped(steps: int, size: int, width: int) -> list[Batch]:
    truth = torch.randn(width, 2) @ torch.randn(2, width)
    inputs = torch.randn(steps, size, width)
    return list(zip(inputs, inputs @ truth / width**0.5, strict=True))


@exploding("matrix products")
def product_past_its_saddle(seed: int) -> Setup:
    """Five small matrices: nothing happens for long, then curvature rises past what Nesterov's momentum takes."""
    optimizer = partial(SGD, lr=0.2, momentum=0.9, nesterov=True)
    return Setup(ScenarioModule(_product(12, 5, 0.6), mse_loss, optimizer), _mapped(300, 32, 12))


@healthy("matrix products")
def product_leaves_its_saddle(seed: int) -> Setup:
    """The same by Adam: the gradients rise a hundredfold while the loss falls."""
    return Setup(ScenarioModule(_product(12, 4, 0.4), mse_loss, adam(0.003)), _mapped(300, 32, 12))


class Polynomial(nn.Module):
    """Products of three linear maps."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(inputs, 24) for _ in range(3))
        self.out = nn.Linear(24, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a polynomial of the third degree."""
        first, second, third = (one(inputs) for one in self.maps)
        value: Tensor = self.out(first + first * second + first * second * third)
        return value


@exploding("polynomials")
def polynomial_of_far_inputs(seed: int) -> Setup:
    """Single inputs far out, whose cubes are enormous, in float16 by RMSprop."""
    inputs, targets = diabetes(True)
    batches = [(one * torch.randn(32, 1).mul(0.8).exp(), target) for one, target in drawn((inputs, targets), 250, 32)]
    module = ScenarioModule(Polynomial(10), mse_loss, partial(RMSprop, lr=0.03))
    return Setup(module, batches, {"plugins": [half_precision(256.0, adapts=True)]})


@healthy("polynomials")
def polynomial_with_tails(seed: int) -> Setup:
    """Gradients of heavy tails by Adam."""
    inputs, targets = diabetes(True)
    batches = [(one * torch.randn(32, 1).mul(0.3).exp(), target) for one, target in drawn((inputs, targets), 300, 32)]
    return Setup(ScenarioModule(Polynomial(10), mse_loss, adam(0.003)), batches)


class Domains(ScenarioModule):
    """Classifies, while features should not show which of two domains an image comes from.

    Args:
        optimizer: Builds the optimizer.
        weight: Weight of the reversed gradient at a step.
    """

    def __init__(self, optimizer: Any, weight: Callable[[int], float]) -> None:
        super().__init__(perceptron([64, 48, 32]), cross_entropy, optimizer)
        self.label, self.domain = nn.Linear(32, 10), perceptron([32, 32, 1])
        self.weight, self.now = weight, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note the step."""
        self.now = batch_idx

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of both losses; the domain's gradient changes its sign at the features."""
        inputs, labels = batch
        half = len(inputs) // 2
        inputs = torch.cat([inputs[:half], 1.2 * inputs[half:].flip(1)])
        features = self.network(inputs).relu()
        weight = self.weight(self.now)
        turned = features.detach() * (1 + weight) - weight * features
        domain = self.domain(turned).squeeze(1)
        origin = torch.cat([torch.zeros(half), torch.ones(len(inputs) - half)])
        return cross_entropy(self.label(features), labels) + binary_cross_entropy_with_logits(domain, origin)


@exploding("domains", begins=60)
def reversal_rises_without_end(seed: int) -> Setup:
    """The reversed gradient weighs more at each step from step 60 on, by gradient descent."""
    module = Domains(sgd(0.2, 0.9), lambda step: 0.1 * 1.04 ** max(0, step - 60))
    return Setup(module, drawn(digits(), 250, 32))


@healthy("domains")
def reversal_by_plan(seed: int) -> Setup:
    """The reversed gradient's weight rises to 0.3 by Adam: the sum of both losses rises a little, as intended."""
    return Setup(Domains(adam(0.001), lambda step: 0.3 * min(1.0, step / 150)), drawn(digits(), 250, 32))


class Compressed(TensorwiseOptimizer):
    """Steps by the largest tenth of gradients, and adds what is left to the next ones.

    Args:
        parameters: The parameters.
        lr: Learning rate.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Step by the largest elements."""
        left = state.setdefault("left", torch.zeros_like(tensor)).add_(gradient)
        least = left.abs().flatten().kthvalue(max(1, int(0.9 * left.numel()))).values
        sent = torch.where(left.abs() >= least, left, 0.0)
        left.sub_(sent)
        tensor.sub_(sent, alpha=group["lr"])


@exploding("compressed gradients")
def compressed_at_high_rate(seed: int) -> Setup:
    """A tenth of the gradient at a step, at a rate that what was left does not take."""
    module = ScenarioModule(perceptron([10, 32, 32, 1]), mse_loss, partial(Compressed, lr=0.5))
    return Setup(module, drawn(diabetes(True), 250, 32))


@healthy("compressed gradients")
def compressed(seed: int) -> Setup:
    """A tenth of the gradient at a step."""
    module = ScenarioModule(perceptron([64, 64, 10]), cross_entropy, partial(Compressed, lr=0.1))
    return Setup(module, drawn(digits(), 250, 32))


class Layered(TensorwiseOptimizer):
    """Momentum, with a rate for each tensor by the norms of its weights and gradients (You et al. 2017).

    Args:
        parameters: The parameters.
        lr: Learning rate.
        trust: Share of the weights' norm by which a tensor moves at a rate of one.
    """

    def __init__(self, parameters: Any, lr: float, trust: float = 0.02) -> None:
        super().__init__(parameters, lr=lr, trust=trust)

    def update(self, tensor: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Step by the momentum of gradients that are scaled to the weights."""
        share = group["trust"] * tensor.norm().clamp(min=1e-2) / (gradient.norm() + 1e-9)
        average = state.setdefault("average", torch.zeros_like(tensor))
        average.mul_(0.9).add_(gradient * share * group["lr"])
        tensor.sub_(average)


@exploding("rates by layer")
def layers_without_warm_up(seed: int) -> Setup:
    """Each tensor moves by a sixth of its norm, in one direction by momentum, in batches of a few images."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, partial(Layered, lr=8.0))
    return Setup(module, drawn(digits(), 250, 8))


@healthy("rates by layer")
def layers_with_warm_up(seed: int) -> Setup:
    """The same at a small rate, which rises for eighty steps, in batches of 256."""
    module = ScenarioModule(perceptron([64, 64, 64, 10]), cross_entropy, partial(Layered, lr=0.5))
    module.schedule = lambda step: min(1.0, (step + 1) / 80)
    return Setup(module, drawn(digits(), 250, 256))


class Transport(ScenarioModule):
    """Moves a cloud of points onto another one; the loss is the price of the cheapest plan, by ten iterations."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the price."""
        made = self.network(batch[0])
        price = (made[:, None] - batch[1]).square().sum(-1)
        first = second = torch.zeros(len(price))
        for _ in range(10):
            first = -0.1 * ((second - price) / 0.1).logsumexp(1)
            second = -0.1 * ((first[:, None] - price) / 0.1).logsumexp(0)
        plan = ((first[:, None] + second - price) / 0.1).exp() / len(price)
        total: Tensor = (plan * price).sum()
        return total


def _clouds(steps: int, size: int) -> list[Batch]:
    angle = 6.2832 * torch.rand(steps, size)
    return list(zip(torch.randn(steps, size, 2), 3 * torch.stack([angle.cos(), angle.sin()], -1), strict=True))


@exploding("transport")
def transport_at_high_rate(seed: int) -> Setup:
    """Steps that throw the points beyond the cloud, by descent with momentum."""
    return Setup(Transport(perceptron([2, 32, 32, 2]), mse_loss, sgd(0.3, 0.9)), _clouds(200, 32))


@healthy("transport")
def transport(seed: int) -> Setup:
    """The same by Adam."""
    return Setup(Transport(perceptron([2, 32, 32, 2]), mse_loss, adam(0.01)), _clouds(200, 32))
