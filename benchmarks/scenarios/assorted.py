"""Runs of assorted kinds: classes and tasks that are added, longer sums, annealed samples, loops, growing batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gumbel_softmax, mse_loss

from benchmarks.scenarios.data import diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import LanguageModel, ScenarioModule, adam, perceptron, sgd
from benchmarks.scenarios.rising_losses import Objected, errors, ramp, squared, with_steps


@healthy("curriculum")
def classes_added(seed: int) -> Setup:
    """Two digits at first, two more every 60 steps."""
    inputs, labels = digits()
    batches = []
    for step in range(300):
        rows = torch.nonzero(labels < 2 + 2 * (step // 60))[:, 0]
        rows = rows[torch.randint(len(rows), (32,))]
        batches.append((inputs[rows], labels[rows]))
    return Setup(ScenarioModule(perceptron([64, 64, 10]), cross_entropy, adam(0.003)), batches)


@healthy("curriculum")
def pixels_shuffled_anew(seed: int) -> Setup:
    """Every 70 steps the pixels change places; judged by wrong answers."""
    orders = [torch.randperm(64) for _ in range(5)]
    batches = [(x[:, orders[step // 70]], y) for step, (x, y) in enumerate(drawn(digits(), 350, 32))]
    return Setup(
        Objected(perceptron([64, 96, 10]), lambda n, b: cross_entropy(n(b[0]), b[1]), adam(0.003), errors), batches
    )


@healthy("sums")
def sums_of_longer_lines(seed: int) -> Setup:
    """The loss is a sum over letters, of lines that get longer at each step; judged by its mean."""
    letters = text()[1]
    model = LanguageModel(letters, 24, nn.GRU(24, 24, batch_first=True))
    batches = [batch for length in range(2, 42) for batch in lines(7, 8, length)]

    def total(n: nn.Module, b: Any) -> Tensor:
        return cross_entropy(n(b[0]), b[1], reduction="sum")

    def mean(n: nn.Module, b: Any) -> Tensor:
        return cross_entropy(n(b[0]), b[1])

    return Setup(Objected(model, total, adam(0.005), mean), batches)


@healthy("sums")
def batches_that_grow(seed: int) -> Setup:
    """The loss is a sum over a batch that grows from 8 to 128 rows, by Adam; judged by its mean."""
    batches = [drawn(diabetes(scaled=True), 1, 8 + step // 2)[0] for step in range(240)]

    def total(n: nn.Module, b: Any) -> Tensor:
        return mse_loss(n(b[0]), b[1], reduction="sum")

    return Setup(Objected(perceptron([10, 32, 1]), total, adam(0.003), squared), batches)


@exploding("sums")
def batches_that_grow_by_descent(seed: int) -> Setup:
    """The same by gradient descent, with batches that grow by two percent a step."""
    batches = [drawn(diabetes(scaled=True), 1, int(8 * 1.02**step))[0] for step in range(320)]

    def total(n: nn.Module, b: Any) -> Tensor:
        return mse_loss(n(b[0]), b[1], reduction="sum")

    return Setup(Objected(perceptron([10, 32, 1]), total, sgd(0.002), squared), batches)


@healthy("codes")
def samples_annealed(seed: int) -> Setup:
    """A code of choices that get sharper (Jang et al. 2017): temperatures from 2 to a tenth."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        choices = gumbel_softmax(n.get_submodule("0")(b[0]).view(-1, 8, 6), tau=b[2])
        return (n.get_submodule("1")(choices.flatten(1)) - b[0]).square().sum(1).mean()  # type: ignore[no-any-return]

    batches = with_steps(drawn(digits(), 300, 32), ramp(20, 260, 2.0, 0.1))
    return Setup(
        Objected(nn.Sequential(perceptron([64, 64, 48]), perceptron([48, 64, 64])), objective, adam(0.003)), batches
    )


@healthy("likelihoods")
def quantiles_of_wild_noise(seed: int) -> Setup:
    """Three quantiles of targets without a variance."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        wrong = b[1] - n(b[0])
        shares = torch.tensor([0.1, 0.5, 0.9])
        return torch.maximum(shares * wrong, (shares - 1) * wrong).mean()

    batches = [
        (x, y + torch.distributions.StudentT(1.5).sample(y.shape)) for x, y in drawn(diabetes(scaled=True), 350, 16)
    ]
    return Setup(Objected(perceptron([10, 24, 3]), objective, adam(0.003)), batches)


@healthy("values")
def returns_that_grow(seed: int) -> Setup:
    """Values of rewards that grow thirtyfold while a policy would get better; judged by the relative error."""
    rewards = ramp(20, 280, 0.1, 3.0)
    batches = [(x, rewards(step) * (1 + 0.3 * y)) for step, (x, y) in enumerate(drawn(diabetes(scaled=True), 320, 16))]

    def relative(n: nn.Module, b: Any) -> Tensor:
        return mse_loss(n(b[0]), b[1]) / b[1].square().mean()  # type: ignore[no-any-return]

    return Setup(Objected(perceptron([10, 32, 1]), squared, adam(0.002), relative), batches)


@healthy("optimizers")
def sharpness_aware(seed: int) -> Setup:
    """Gradients are taken a little uphill (Foret et al. 2021): each step has two backward passes."""

    class Uphill(ScenarioModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            size = torch.stack([one.grad.norm() for one in self.parameters() if one.grad is not None]).norm()
            moves = [(one, 0.05 * one.grad / size) for one in self.parameters() if one.grad is not None]
            with torch.no_grad():
                for one, move in moves:
                    one.add_(move)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            with torch.no_grad():
                for one, move in moves:
                    one.sub_(move)
            optimizer.step()
            return loss.detach()

    module = Uphill(perceptron([64, 64, 10]), cross_entropy, sgd(0.1, momentum=0.9))
    module.automatic_optimization = False
    return Setup(module, drawn(digits(), 250, 32))


class Looped(nn.Module):
    """One layer applied again and again, more often from time to time."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inner = nn.Linear(24, 24)
        nn.init.orthogonal_(self.inner.weight, gain=gain)
        self.first, self.last = nn.Linear(10, 24), nn.Linear(24, 1)

    def forward(self, inputs: Tensor, loops: int) -> Tensor:
        """Return the output after some loops."""
        hidden = self.first(inputs)
        for _ in range(loops):
            hidden = hidden + self.inner(hidden).relu()
        outputs: Tensor = self.last(hidden)
        return outputs


@exploding("depth")
def more_loops(seed: int) -> Setup:
    """A residual layer is looped once more every six steps."""
    batches = with_steps(drawn(diabetes(scaled=True), 300, 32), lambda step: 1 + step // 6)
    return Setup(Objected(Looped(0.3), lambda n, b: mse_loss(n(b[0], b[2]), b[1]), sgd(0.002)), batches)


class LinearAttention(nn.Module):
    """Attention without a softmax and without any norm, as sums of products."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(letters, 24), nn.Linear(24, 72)
        self.head = nn.Linear(24, letters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape ``(N, letters)``."""
        query, key, value = self.mix(self.embedding(inputs)).chunk(3, -1)
        read = (query @ key.transpose(1, 2)).tril() @ value
        logits: Tensor = self.head(read)
        return logits.flatten(0, 1)


@exploding("attention")
def linear_attention_rate_rises(seed: int) -> Setup:
    """Attention without a softmax, by gradient descent at a rate that rises by four percent a step."""
    module = ScenarioModule(LinearAttention(text()[1]), cross_entropy, sgd(0.01), schedule=lambda step: 1.04**step)
    return Setup(module, lines(300, 8, 16))


class Hyper(nn.Module):
    """A network whose weights another network makes of a code."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = perceptron([4, 32, 10 * 16 + 16])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the network that is made."""
        weights = self.maker(torch.ones(4))
        outputs: Tensor = (inputs @ weights[:160].view(10, 16)).tanh() @ weights[160:, None]
        return outputs


@exploding("structures made by networks")
def hyper_rate_rises(seed: int) -> Setup:
    """Weights made by another network, by descent with momentum at a rate that rises by three percent a step."""
    module = ScenarioModule(Hyper(), mse_loss, sgd(0.003, momentum=0.9), schedule=lambda step: 1.03**step)
    return Setup(module, drawn(diabetes(scaled=True), 350, 32))


@healthy("structures made by networks")
def hyper(seed: int) -> Setup:
    """The same by Adam."""
    return Setup(ScenarioModule(Hyper(), mse_loss, adam(0.002)), drawn(diabetes(scaled=True), 250, 32))


@exploding("language")
def gated_text_by_adam_at_a_rising_rate(seed: int) -> Setup:
    """A gated recurrent network on text; Adam's rate rises by five percent a step."""
    model = LanguageModel(text()[1], 24, nn.GRU(24, 24, batch_first=True))
    return Setup(ScenarioModule(model, cross_entropy, adam(0.001), schedule=lambda step: 1.05**step), lines(260, 8, 16))


@exploding("values", begins=100)
def discount_raised_too_far(seed: int) -> Setup:
    """Values of their own successors; from step 100 on the discount is 1.5."""

    def objective(n: nn.Module, b: Any) -> Tensor:
        with torch.no_grad():
            wanted = b[1] + b[2] * n(b[0].roll(1, 0))
        return mse_loss(n(b[0]), wanted)

    batches = with_steps(drawn(diabetes(scaled=True), 350, 32), lambda step: 0.8 if step < 100 else 1.5)
    return Setup(Objected(perceptron([10, 32, 1]), objective, adam(0.01)), batches)
