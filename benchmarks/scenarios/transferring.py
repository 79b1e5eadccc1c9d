"""Training that goes on from somewhere: fine-tuning, adapters, unfreezing, and learning to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Optimizer

from benchmarks.scenarios.data import digits, drawn
from benchmarks.scenarios.distilling import trained
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, scale_weights, sgd


def _odd(labels: Tensor) -> Tensor:
    return labels % 2


def _task(steps: int, size: int, relabel: Callable[[Tensor], Tensor] = _odd) -> list[Any]:
    return [(inputs, relabel(labels)) for inputs, labels in drawn(digits(), steps, size)]


def _with_new_head(sizes: list[int]) -> nn.Sequential:
    network = trained(sizes)
    network[-1] = nn.Linear(sizes[-2], 2)
    return network


@healthy("fine-tuning")
def fine_tuned(seed: int) -> Setup:
    """A trained network with a new head, at a small learning rate."""
    return Setup(ScenarioModule(_with_new_head([64, 32, 10]), cross_entropy, adam(0.001)), _task(200, 32))


@healthy("fine-tuning")
def fine_tuned_further(seed: int) -> Setup:
    """A network that has learned its task goes on with it: nothing is left to be learned."""
    return Setup(ScenarioModule(trained([64, 64, 10], 400), cross_entropy, sgd(0.01)), drawn(digits(), 300, 16))


@healthy("fine-tuning")
def new_biases(seed: int) -> Setup:
    """Only the biases are trained, which start at zero."""
    network = trained([64, 32, 10])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("bias" in name)
        if "bias" in name:
            nn.init.zeros_(parameter)

    def optimizer(parameters: Any) -> Optimizer:
        return torch.optim.Adam([one for one in parameters if one.requires_grad], 0.01)

    return Setup(ScenarioModule(network, cross_entropy, optimizer), _task(200, 32, lambda labels: (labels + 1) % 10))


@healthy("fine-tuning")
def head_of_zeros(seed: int) -> Setup:
    """Only a head of zeros is trained, on the features of a frozen network."""
    network = trained([64, 32, 10])
    network.requires_grad_(False)
    network[-1] = nn.Linear(32, 10)
    scale_weights(network[-1], 0.0)

    def optimizer(parameters: Any) -> Optimizer:
        return torch.optim.Adam([one for one in parameters if one.requires_grad], 0.01)

    return Setup(ScenarioModule(network, cross_entropy, optimizer), drawn(digits(), 200, 32))


@healthy("fine-tuning")
def unfreezing_by_layer(seed: int) -> Setup:
    """Layers are unfrozen one by one, each forty steps after the one behind it."""
    network = _with_new_head([64, 32, 32, 10])
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        layer.requires_grad_(False)
    events = {40: lambda module: layers[1].requires_grad_(), 80: lambda module: layers[0].requires_grad_()}
    return Setup(ScenarioModule(network, cross_entropy, adam(0.003), events=events), _task(200, 32))  # type: ignore[arg-type]


@exploding("fine-tuning")
def fine_tuned_too_fast(seed: int) -> Setup:
    """A trained network goes on with the learning rate of another optimizer, a hundred times too high."""
    return Setup(ScenarioModule(trained([64, 32, 10]), cross_entropy, sgd(30.0)), drawn(digits(), 200, 32))


@exploding("fine-tuning", begins=60)
def unfreezing_raw_inputs(seed: int) -> Setup:
    """At step 60 the first layer is unfrozen, and the inputs come without their scaling by then."""
    network = _with_new_head([64, 32, 10])
    network[0].requires_grad_(False)
    module = ScenarioModule(network, cross_entropy, sgd(0.3), events={60: lambda one: network[0].requires_grad_()})  # type: ignore[dict-item]
    batches = [
        (inputs * (255.0 if step >= 60 else 1.0), labels) for step, (inputs, labels) in enumerate(_task(200, 32))
    ]
    return Setup(module, batches)


class Adapter(nn.Module):
    """A frozen linear layer with a learned low-rank part that starts at zero (Hu et al. 2021)."""

    def __init__(self, frozen: nn.Linear, rank: int, strength: float) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        self.strength = strength

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the frozen outputs and the low-rank part."""
        outputs: Tensor = self.frozen(inputs) + self.strength * (inputs @ self.down.T) @ self.up.T
        return outputs


def _adapted(strength: float) -> nn.Sequential:
    network = trained([64, 32, 32, 10])
    for place, layer in enumerate(network):
        if isinstance(layer, nn.Linear):
            network[place] = Adapter(layer, 4, strength)
    return network


def _of_adapters(make: MakeOptimizer) -> MakeOptimizer:
    return lambda parameters: make([one for one in parameters if one.requires_grad])


def _shifted(labels: Tensor) -> Tensor:
    return (labels + 3) % 10


@healthy("adapters")
def adapters(seed: int) -> Setup:
    """Only adapters are trained, of which one factor starts at zero."""
    module = ScenarioModule(_adapted(2.0), cross_entropy, _of_adapters(adam(0.003)))
    return Setup(module, _task(200, 32, _shifted))


@healthy("adapters")
def adapters_by_descent(seed: int) -> Setup:
    """The same by gradient descent, four rows a step."""
    module = ScenarioModule(_adapted(2.0), cross_entropy, _of_adapters(sgd(0.02)))
    return Setup(module, _task(250, 4, _shifted))


@exploding("adapters")
def adapters_too_strong(seed: int) -> Setup:
    """The adapters' factor is a hundred times too large, for gradient descent."""
    module = ScenarioModule(_adapted(100.0), cross_entropy, _of_adapters(sgd(0.1)))
    return Setup(module, _task(200, 32, _shifted))


@exploding("adapters")
def adapters_rate_rises(seed: int) -> Setup:
    """A learning rate that rises by six percent a step, by gradient descent."""
    module = ScenarioModule(_adapted(2.0), cross_entropy, _of_adapters(sgd(0.003)), lambda step: 1.06**step)
    return Setup(module, _task(300, 32, _shifted))


class Learner(ScenarioModule):
    """Learns a start from which a few inner steps fit a sine (Finn et al. 2017)."""

    needs_gradients = True

    def __init__(self, optimizer: MakeOptimizer, inner_rate: float, inner_steps: int) -> None:
        super().__init__(perceptron([1, 32, 1], nn.Tanh), mse_loss, optimizer)
        self.inner_rate, self.inner_steps = inner_rate, inner_steps

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the error on half of the points after steps on the other half."""
        inputs, targets = batch
        half = len(inputs) // 2
        weights: dict[str, Tensor] = dict(self.network.named_parameters())
        for _ in range(self.inner_steps):
            error = mse_loss(functional_call(self.network, weights, (inputs[:half],)), targets[:half])
            slopes = torch.autograd.grad(error, [*weights.values()], create_graph=True)
            weights = {
                name: weight - self.inner_rate * slope
                for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            }
        return mse_loss(functional_call(self.network, weights, (inputs[half:],)), targets[half:])


def _sines(steps: int, size: int) -> list[Any]:
    places = 6 * torch.rand(steps, size, 1) - 3
    return list(zip(places, (places + 3 * torch.rand(steps, 1, 1)).sin(), strict=True))


@healthy("learning to learn")
def learner(seed: int) -> Setup:
    """Three inner steps, a task a step."""
    return Setup(Learner(adam(0.003), 0.02, 3), _sines(250, 20))


@healthy("learning to learn")
def learner_one_step(seed: int) -> Setup:
    """One inner step, six points a task: a noisy loss."""
    return Setup(Learner(sgd(0.01), 0.05, 1), _sines(250, 6))


@exploding("learning to learn")
def learner_inner_rate_too_high(seed: int) -> Setup:
    """Inner steps that overshoot, and outer ones that follow them."""
    return Setup(Learner(sgd(0.05), 0.5, 5), _sines(200, 20))


@exploding("learning to learn")
def learner_outer_rate_too_high(seed: int) -> Setup:
    """Outer steps with a learning rate of two."""
    return Setup(Learner(sgd(2.0), 0.02, 3), _sines(200, 20))
