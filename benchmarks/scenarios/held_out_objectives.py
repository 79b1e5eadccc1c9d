"""More families of kinds that no rule was written for: quantized codes, alignment, mining, simulators, penalties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, gumbel_softmax, linear, mse_loss, normalize, relu

from benchmarks.scenarios.data import diabetes, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import MakeOptimizer, ScenarioModule, adam, perceptron, sgd


class Twins(ScenarioModule):
    """Two noisy views of an image that are to be alike; with nothing that keeps them from being constant.

    Args:
        optimizer: Builds the optimizer.
        bounded: Whether the likeness is a cosine; else it is a product without a bound.
    """

    def __init__(self, optimizer: MakeOptimizer, bounded: bool) -> None:
        super().__init__(perceptron([64, 64, 16]), mse_loss, optimizer)
        self.bounded = bounded

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the negative likeness."""
        first, second = (self.network(batch[0] + 0.1 * torch.randn_like(batch[0])) for _ in range(2))
        if self.bounded:
            first, second = normalize(first, dim=1), normalize(second, dim=1)
        return -(first * second).sum(1).mean()  # type: ignore[no-any-return]


@healthy("collapse")
def twins_collapse(seed: int) -> Setup:
    """All images get the same code: useless, but no explosion; the loss ends at minus one, its gradient at zero."""
    return Setup(Twins(adam(0.003), bounded=True), drawn(digits(), 250, 32))


@exploding("collapse")
def twins_without_bound(seed: int) -> Setup:
    """Without normalization the product falls for ever."""
    return Setup(Twins(sgd(0.01), bounded=False), drawn(digits(), 300, 32))


class ValueOfState(ScenarioModule):
    """Learns the value of states of a chain from one step ahead, with a target network that follows slowly."""

    def __init__(self, optimizer: MakeOptimizer, follow: float, changes: tuple[int, float] = (10**9, 1.0)) -> None:
        super().__init__(perceptron([6, 32, 1]), mse_loss, optimizer)
        self.target = perceptron([6, 32, 1])
        self.target.load_state_dict(self.network.state_dict())
        self.target.requires_grad_(False)
        self.follow, self.changes, self.seen = follow, changes, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Move the target network."""
        super().on_train_batch_start(batch, batch_idx)
        self.seen = batch_idx
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, self.follow)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the squared error against the reward and the discounted value of the next state."""
        states, following = batch
        reward = states.sum(1, keepdim=True) * (self.changes[1] if self.seen >= self.changes[0] else 1.0)
        return mse_loss(self.network(states), reward + 0.7 * self.target(following))


def _transitions(steps: int, size: int) -> list[Any]:
    states = torch.randn(steps, size, 6)
    return list(zip(states, 0.9 * states + 0.3 * torch.randn_like(states), strict=True))


@healthy("reward scale")
def rewards_grow_by_half(seed: int) -> Setup:
    """From step 150 on rewards are half as large again."""
    return Setup(ValueOfState(adam(0.005), 0.02, (150, 1.5)), _transitions(400, 32))


@healthy("reward scale")
def values_from_nothing(seed: int) -> Setup:
    """Values rise from zero towards several times the reward, which a target network follows slowly."""
    return Setup(ValueOfState(sgd(0.005), 0.05), _transitions(400, 16))


@exploding("reward scale", begins=150)
def rewards_in_cents(seed: int) -> Setup:
    """From step 150 on rewards are a thousand times as large, which gradient descent does not bear."""
    return Setup(ValueOfState(sgd(0.02), 0.02, (150, 1000.0)), _transitions(300, 32))


class Codebook(ScenarioModule):
    """An autoencoder through the nearest of 32 learned codes (van den Oord et al. 2017)."""

    def __init__(self, optimizer: MakeOptimizer) -> None:
        super().__init__(nn.Sequential(perceptron([64, 32, 8]), perceptron([8, 32, 64])), mse_loss, optimizer)
        self.codes = nn.Parameter(torch.randn(32, 8))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the errors of image, code and commitment."""
        code = self.network.get_submodule("0")(batch[0])
        nearest = self.codes[torch.cdist(code, self.codes).argmin(1)]
        passed = code + (nearest - code).detach()
        error = mse_loss(self.network.get_submodule("1")(passed), batch[0])
        return error + mse_loss(nearest, code.detach()) + 0.25 * mse_loss(code, nearest.detach())


@healthy("quantized codes")
def codebook(seed: int) -> Setup:
    """Codes by Adam; most of them are never chosen."""
    return Setup(Codebook(adam(0.003)), drawn(digits(), 300, 32))


@exploding("quantized codes")
def codebook_rate_rises(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by four percent a step."""
    module = Codebook(sgd(0.1))
    module.schedule = lambda step: 1.04**step
    return Setup(module, drawn(digits(), 300, 32))


class Alignment(ScenarioModule):
    """Digits of a row of images, without their places (Graves et al. 2006)."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of the alignment."""
        images, labels = batch
        logits = self.network(images).log_softmax(-1)
        times = torch.full((images.shape[1],), images.shape[0])
        return ctc_loss(logits, labels, times, torch.full((len(labels),), labels.shape[1]), zero_infinity=True)


def _rows(steps: int) -> list[Any]:
    images, labels = digits()
    rows = torch.randint(len(images), (steps, 8, 4))
    return [(images[one].transpose(0, 1).repeat_interleave(3, 0), labels[one] + 1) for one in rows]


@healthy("alignment")
def aligned(seed: int) -> Setup:
    """Four digits over twelve time steps, by Adam."""
    return Setup(Alignment(perceptron([64, 48, 11]), mse_loss, adam(0.005)), _rows(200))


@exploding("alignment")
def aligned_rate_rises(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by six percent a step."""
    module = Alignment(perceptron([64, 48, 48, 11]), mse_loss, sgd(0.1), lambda step: 1.06**step)
    return Setup(module, _rows(250))


class Triplets(ScenarioModule):
    """The hardest example of the same digit is to be nearer than the hardest other one (Hermans et al. 2017)."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean excess over the margin."""
        codes, labels = self.network(batch[0]), batch[1]
        distances = (codes[:, None] - codes).square().sum(-1).add(1e-12).sqrt()
        same = labels[:, None] == labels
        hardest = (distances * same).amax(1) - distances.masked_fill(same, 1e9).amin(1)
        return relu(hardest + 0.2).mean()


@healthy("mining")
def hardest_triplets(seed: int) -> Setup:
    """The loss rests at its margin at first, and many of its gradients are zero."""
    return Setup(Triplets(perceptron([64, 64, 16]), mse_loss, adam(0.001)), drawn(digits(), 300, 32))


@exploding("mining")
def hardest_triplets_pushed(seed: int) -> Setup:
    """Distances without a margin's hinge: what is apart is pushed apart for ever, at a rate that rises."""

    class Pushed(Triplets):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            codes, labels = self.network(batch[0]), batch[1]
            distances = (codes[:, None] - codes).square().sum(-1)
            same = labels[:, None] == labels
            return (distances * same).mean() - 0.5 * (distances * ~same).mean()  # type: ignore[no-any-return]

    return Setup(Pushed(perceptron([64, 64, 16]), mse_loss, sgd(0.02)), drawn(digits(), 300, 32))


class Choices(ScenarioModule):
    """An autoencoder through nearly discrete choices, whose temperature falls (Jang et al. 2017)."""

    def __init__(self, optimizer: MakeOptimizer, fall: float) -> None:
        super().__init__(nn.Sequential(perceptron([64, 32, 32]), perceptron([32, 32, 64])), mse_loss, optimizer)
        self.fall, self.temperature = fall, 2.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lower the temperature."""
        super().on_train_batch_start(batch, batch_idx)
        self.temperature = max(2.0 * self.fall**batch_idx, 0.1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the squared error of the image, as a sum."""
        logits = self.network.get_submodule("0")(batch[0]).unflatten(1, (4, 8))
        chosen = gumbel_softmax(logits, self.temperature).flatten(1)
        return (self.network.get_submodule("1")(chosen) - batch[0]).square().sum(1).mean()  # type: ignore[no-any-return]


@healthy("discrete choices")
def annealed_choices(seed: int) -> Setup:
    """The temperature falls from two to a tenth, and gradients get steeper on the way."""
    return Setup(Choices(adam(0.003), 0.985), drawn(digits(), 300, 32))


@exploding("discrete choices")
def annealed_choices_by_descent(seed: int) -> Setup:
    """The same by gradient descent, at a learning rate that a sum over pixels does not bear for long."""
    module = Choices(sgd(0.003), 0.985)
    module.schedule = lambda step: 1.04**step
    return Setup(module, drawn(digits(), 300, 32))


class Written(nn.Module):
    """A regression whose weights another network writes, from the first five inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = perceptron([5, 32, 6 * 8 + 8])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        weights = self.writer(inputs[:, :5])
        first, second = weights[:, :48].unflatten(1, (8, 6)), weights[:, 48:]
        padded = nn.functional.pad(inputs[:, 5:], (0, 1), value=1.0)
        return ((first @ padded[:, :, None]).squeeze(2).tanh() * second).sum(1, keepdim=True)  # type: ignore[no-any-return]


@healthy("hypernetworks")
def written_weights(seed: int) -> Setup:
    """Weights written by a network, by Adam."""
    return Setup(ScenarioModule(Written(), mse_loss, adam(0.003)), drawn(diabetes(scaled=True), 250, 32))


@exploding("hypernetworks")
def written_weights_rate_rises(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by four percent a step."""
    module = ScenarioModule(Written(), mse_loss, sgd(0.02), lambda step: 1.04**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 32))


class Simulator(ScenarioModule):
    """A learned step of a swinging system, applied many times over."""

    def __init__(self, optimizer: MakeOptimizer, length: int, grows: bool = False) -> None:
        super().__init__(perceptron([4, 32, 4], nn.ELU), mse_loss, optimizer)
        self.length, self.grows, self.seen = length, grows, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Count the batches."""
        super().on_train_batch_start(batch, batch_idx)
        self.seen = batch_idx

    def loss(self, batch: Tensor) -> Tensor:
        """Return the error over the rolled out steps."""
        turn = torch.tensor([[0.98, 0.2, 0, 0], [-0.2, 0.98, 0, 0], [0, 0, 0.95, 0.3], [0, 0, -0.3, 0.95]])
        state, truth, error = batch, batch, torch.zeros(())
        length = self.length + self.seen // 4 if self.grows else self.length
        for _ in range(length):
            truth = truth @ turn
            state = state + self.network(state)
            error = error + mse_loss(state, truth)
        return error / length


@healthy("simulators")
def simulator(seed: int) -> Setup:
    """Eight steps, by Adam."""
    return Setup(Simulator(adam(0.003), 8), [*torch.randn(200, 16, 4)])


@healthy("simulators")
def simulator_grows(seed: int) -> Setup:
    """From two steps to over forty: the loss rises as the task gets longer."""
    return Setup(Simulator(adam(0.003), 2, grows=True), [*torch.randn(160, 16, 4)])


@exploding("simulators")
def simulator_by_descent(seed: int) -> Setup:
    """Sixteen steps by gradient descent, at a learning rate that rises by five percent a step."""
    module = Simulator(sgd(1e-5), 16)
    module.schedule = lambda step: 1.05**step
    return Setup(module, [*torch.randn(200, 16, 4)])


class Penalized(ScenarioModule):
    """A critic of two clouds whose slope is held at one by a penalty (Gulrajani et al. 2017)."""

    needs_gradients = True

    def __init__(self, optimizer: MakeOptimizer, weight: float) -> None:
        super().__init__(perceptron([2, 48, 48, 1], nn.LeakyReLU), mse_loss, optimizer)
        self.weight = weight

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the critic's distance, negative, and the penalty."""
        real, made = batch
        between = (real + torch.rand(len(real), 1) * (made - real)).requires_grad_()
        slope = torch.autograd.grad(self.network(between).sum(), between, create_graph=True)[0]
        penalty = (slope.square().sum(1).add(1e-12).sqrt() - 1).square().mean()
        return (self.network(made) - self.network(real)).mean() + self.weight * penalty  # type: ignore[no-any-return]


def _clouds(steps: int, size: int) -> list[Any]:
    return [(torch.randn(size, 2) + 3, torch.randn(size, 2)) for _ in range(steps)]


@healthy("gradient penalty")
def penalized_slope(seed: int) -> Setup:
    """The loss falls from about ten through zero to minus four."""
    return Setup(Penalized(adam(0.002, betas=(0.0, 0.9)), 10.0), _clouds(250, 32))


@exploding("gradient penalty")
def penalized_slope_by_descent(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by four percent a step."""
    module = Penalized(sgd(0.005), 10.0)
    module.schedule = lambda step: 1.04**step
    return Setup(module, _clouds(300, 32))


class LowPrecision(nn.Module):
    """A perceptron with weights of bfloat16."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.layers = perceptron(sizes).to(torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs in float32."""
        outputs: Tensor = self.layers(inputs.to(torch.bfloat16)).float()
        return outputs


@healthy("low precision")
def weights_of_bfloat16(seed: int) -> Setup:
    """Weights of eight bits of precision, by Adam."""
    return Setup(ScenarioModule(LowPrecision([64, 64, 10]), cross_entropy, adam(0.003)), drawn(digits(), 250, 32))


@exploding("low precision")
def weights_of_bfloat16_rate_rises(seed: int) -> Setup:
    """The same in a regression by gradient descent, with a learning rate that rises by four percent a step."""
    module = ScenarioModule(LowPrecision([10, 32, 1]), mse_loss, sgd(0.02), lambda step: 1.04**step)
    return Setup(module, drawn(diabetes(scaled=True), 300, 16))


class Fourier(nn.Module):
    """Random sines of the inputs, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(3 * torch.randn(64, 1))
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.head(linear(inputs, self.frequencies).sin())
        return outputs


def _waves(steps: int, size: int) -> list[Any]:
    places = torch.rand(steps, size, 1)
    return [(one, (20 * one).sin() + 0.1 * torch.randn_like(one)) for one in places]


@healthy("random features")
def sines(seed: int) -> Setup:
    """Sines whose frequencies are learned too."""
    return Setup(ScenarioModule(Fourier(), mse_loss, adam(0.01)), _waves(250, 16))


@exploding("random features")
def sines_rate_rises(seed: int) -> Setup:
    """The same by gradient descent with a learning rate that rises by three percent a step."""
    return Setup(ScenarioModule(Fourier(), mse_loss, sgd(0.005), lambda step: 1.03**step), _waves(300, 16))
