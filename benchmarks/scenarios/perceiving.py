"""Recognition and restoration of images, texts and signals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    conv2d,
    cross_entropy,
    leaky_relu,
    mse_loss,
    one_hot,
    smooth_l1_loss,
)
from torch.optim import Adagrad, AdamW, NAdam, Optimizer, RMSprop

from benchmarks.scenarios.by_step import ByStep, error
from benchmarks.scenarios.data import Batch, diabetes, digits, drawn, lines, text
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import Block, LanguageModel, ScenarioModule, adam, perceptron, sgd


class Lion(Optimizer):
    """Steps of the sign of an average of gradients, of the same size for all weights."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                    direction = average.lerp(weight.grad, 0.1).sign()
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                    average.lerp_(weight.grad, 0.01)
        return loss


def _scenes(steps: int, size: int, share: float) -> list[Batch]:
    """Return striped images, a share of them with a bright rectangle, and its center, its sides and whether it is."""
    axis = (torch.arange(12) + 0.5) / 12
    stripes = 0.3 * (8 * axis[:, None] + 5 * axis + 6 * torch.rand(steps, size, 1, 1)).sin()
    sides = 0.2 + 0.3 * torch.rand(steps, size, 2)
    centers = sides / 2 + (1 - sides) * torch.rand(steps, size, 2)
    inside = ((axis - centers[..., None]).abs() < sides[..., None] / 2).float()
    present = (torch.rand(steps, size, 1) < share).float()
    images = stripes + present[..., None] * inside[..., 0, :, None] * inside[..., 1, None, :]
    return list(zip(images[:, :, None], torch.cat([centers, sides, present], -1), strict=True))


def _detector(outputs: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, outputs)),
    )


@healthy("boxes")
def boxes_of_rare_objects(seed: int) -> Setup:
    """Rectangles in a tenth of the images are found with a focal loss over their number; warm-up, then a cosine."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        found, (boxes, present) = network(batch[0]), batch[1].split([4, 1], 1)
        entropy = binary_cross_entropy_with_logits(found[:, 4:], present, reduction="none")
        focal = (1 - (-entropy).exp()).square() * entropy
        places = smooth_l1_loss(found[:, :4], boxes, reduction="none") * present
        loss: Tensor = (focal.sum() + 4 * places.sum()) / present.sum().clamp(min=1.0)
        return loss

    module = ByStep(
        _detector(5),
        objective,
        partial(AdamW, lr=0.005),
        schedule=lambda step: min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / 400)),
    )
    return Setup(module, _scenes(400, 32, 0.1))


def _attacked(strength: Callable[[int], float], criterion: Any) -> Any:
    """Return an objective at inputs that are moved along the signs of their gradients."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(criterion(network(inputs), batch[1]), inputs)
        loss: Tensor = criterion(network(batch[0] + strength(step) * slope.sign()), batch[1])
        return loss

    return objective


@healthy("attacked inputs")
def digits_attacked_ever_harder(seed: int) -> Setup:
    """Digits are moved against the network, by up to 0.15 from step 200 on; one cycle of the learning rate."""
    module = ByStep(
        perceptron([64, 64, 10]),
        _attacked(lambda step: 0.15 * min(1.0, step / 200), cross_entropy),
        sgd(0.3, 0.9),
        schedule=lambda step: 0.05 + min(step / 120, max(0.0, (400 - step) / 280)),
    )
    return Setup(module, drawn(digits(), 400, 32))


@exploding("attacked inputs")
def patients_attacked_by_a_rising_rate(seed: int) -> Setup:
    """Measurements are moved by 0.1 against a deep network whose learning rate rises by 0.8 % per step."""
    module = ByStep(
        perceptron([10, 32, 32, 1]), _attacked(lambda step: 0.1, mse_loss), sgd(0.06), schedule=lambda s: 1.008**s
    )
    return Setup(module, drawn(diabetes(scaled=True), 500, 32))


class _Picture(nn.Module):
    """An image whose pixels are trained, and fixed filters."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Parameter(0.5 * torch.randn(1, 1, 16, 16))
        self.filters: Tensor
        self.register_buffer("filters", torch.randn(16, 1, 5, 5) / 5)

    def forward(self, image: Tensor) -> Tensor:
        """Return the products of the filters' responses, the sums over all places."""
        responses = conv2d(image, self.filters).relu().flatten(2)
        return responses @ responses.mT / 8


def _texture(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the error of the products at the pixels, which are shifted first."""
    assert isinstance(network, _Picture)
    axis = torch.arange(16.0)
    stripes = (0.8 * axis[:, None] + 0.4 * axis).sin() + 0.5 * (1.6 * axis).cos()
    shifted = network.pixels.roll(tuple(batch[0].tolist()), (2, 3))
    return mse_loss(network(shifted), network(stripes[None, None]))


def _shifts(steps: int) -> list[Batch]:
    return [(shift, shift) for shift in torch.randint(16, (steps, 2))]


@healthy("textures")
def texture_by_adam(seed: int) -> Setup:
    """An image gets the statistics of a texture by Adam, seen at another offset in each step."""
    return Setup(ByStep(_Picture(), _texture, adam(0.02)), _shifts(300))


@exploding("textures")
def texture_by_momentum(seed: int) -> Setup:
    """The same by momentum, whose learning rate rises by 2 % per step: the error is of the fourth degree."""
    return Setup(ByStep(_Picture(), _texture, sgd(0.002, 0.9), schedule=lambda step: 1.02**step), _shifts(400))


def _noisy_digits(steps: int, size: int, most: float) -> list[Batch]:
    """Return digits with noise, of another level in each batch, and with other noise of this level as targets."""
    batches = []
    for (pixels, _), level in zip(drawn(digits(), steps, size), most * torch.rand(steps), strict=True):
        batches.append((pixels + level * torch.randn_like(pixels), pixels + level * torch.randn_like(pixels)))
    return batches


@healthy("restoration")
def digits_restored_from_noisy_ones(seed: int) -> Setup:
    """Noisy digits are learned from noisy digits by RMSprop; the noise differs from batch to batch."""
    network = perceptron([64, 96, 64])
    return Setup(ByStep(network, error, partial(RMSprop, lr=0.002)), _noisy_digits(400, 16, 0.4))


class _Exits(nn.Module):
    """Four layers, each with its own classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64 if n == 0 else width, width) for n in range(4)])
        self.heads = nn.ModuleList([nn.Linear(width, 10) for _ in range(4)])

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the outputs of all classifiers."""
        outputs = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            inputs = leaky_relu(layer(inputs), 0.1)
            outputs.append(head(inputs))
        return outputs


@healthy("early exits")
def exits_switched_on(seed: int) -> Setup:
    """The inner classifiers are trained from step 150 on, with a weight of 0.3, and 10 % of the labels are wrong."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        exits = network(batch[0])
        losses = torch.stack([cross_entropy(one, batch[1]) for one in exits])
        return losses[-1] + (0.3 * losses[:-1].sum() if step >= 150 else 0.0)

    pixels, labels = digits()
    labels = torch.where(torch.rand(len(labels)) < 0.1, torch.randint(10, labels.shape), labels)
    return Setup(ByStep(_Exits(48), objective, adam(0.003)), drawn((pixels, labels), 400, 32))


@exploding("early exits")
def exits_by_one_cycle(seed: int) -> Setup:
    """All classifiers by squared errors, in one cycle of the learning rate whose peak is too high."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        targets = one_hot(batch[1], 10).float()
        return torch.stack([mse_loss(one, targets) for one in network(batch[0])]).sum()

    module = ByStep(
        _Exits(64), objective, sgd(6.0, 0.9), schedule=lambda s: 0.02 + min(s / 200, max(0.0, (400 - s) / 200))
    )
    return Setup(module, drawn(digits(), 400, 32))


@healthy("trees of labels")
def coarse_labels_then_fine_ones(seed: int) -> Setup:
    """Whether a digit is round, then which one it is by and by: the weight moves from one loss to the other; Lion."""
    is_round = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 1, 1])

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        coarse, fine = network(batch[0]).split([2, 10], 1)
        share = min(1.0, max(0.0, (step - 80) / 160))
        return (1 - share) * cross_entropy(coarse, is_round[batch[1]]) + share * cross_entropy(fine, batch[1])

    module = ByStep(perceptron([64, 48, 12]), objective, partial(Lion, lr=0.001, weight_decay=0.1))
    return Setup(module, drawn(digits(), 400, 16))


@cache
def _words() -> tuple[Tensor, Tensor]:
    """Return the words of this project's license as numbers, and how often each occurs."""
    words = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").lower().split()
    counts = Counter(words)
    numbers = {word: number for number, word in enumerate(counts)}
    return torch.tensor([numbers[word] for word in words]), torch.tensor([float(count) for count in counts.values()])


class _NextWord(nn.Module):
    """Vectors of the two words before, and of the words that may follow."""

    def __init__(self, width: int, sparse: bool) -> None:
        super().__init__()
        number = len(_words()[1])
        self.before = nn.Embedding(number, width, sparse=sparse)
        self.after = nn.Embedding(number, width, sparse=sparse)
        nn.init.normal_(self.after.weight, std=0.1)

    def forward(self, pairs: Tensor, words: Tensor) -> Tensor:
        """Return the logits of some words."""
        logits: Tensor = self.before(pairs).sum(1) @ self.after(words).T
        return logits


def _next_word(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the cross-entropy among the words that follow in the batch and thirty drawn ones."""
    _, counts = _words()
    pairs, words = batch
    shares = counts.pow(0.75) / counts.pow(0.75).sum()
    among = torch.cat([words, torch.multinomial(shares, 30)])
    logits = network(pairs, among) - shares[among].log()
    return cross_entropy(logits, torch.arange(len(words)))


def _pairs_of_words(steps: int, size: int) -> list[Batch]:
    words, _ = _words()
    places = torch.randint(len(words) - 2, (steps, size))
    return list(zip(torch.stack([words[places], words[places + 1]], -1), words[places + 2], strict=True))


@healthy("sampled vocabularies")
def next_word_among_few(seed: int) -> Setup:
    """The next word of a license among drawn ones, with sparse gradients, by Adagrad."""
    return Setup(ByStep(_NextWord(16, True), _next_word, partial(Adagrad, lr=0.1)), _pairs_of_words(400, 16))


@exploding("sampled vocabularies")
def next_word_by_descent(seed: int) -> Setup:
    """The same by descent without decay of the weights, with a rate far above the usual one."""
    return Setup(ByStep(_NextWord(32, False), _next_word, sgd(6.0)), _pairs_of_words(300, 16))


def _mistyped(steps: int, size: int, share: Callable[[int], float]) -> list[Batch]:
    """Return lines with wrong letters, and the right ones where they are wrong: -100 elsewhere."""
    batches = []
    for step, (letters, _) in enumerate(lines(steps, size, 24)):
        wrong = torch.rand(letters.shape) < share(step)
        typed = torch.where(wrong, torch.randint(text()[1], letters.shape), letters)
        batches.append((typed, torch.where(wrong, letters, -100).flatten()))
    return batches


def _reader(normalised: bool) -> nn.Module:
    return LanguageModel(text()[1], 24, nn.Sequential(*(Block(24, normalised) for _ in range(2))))


def _corrected(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the cross-entropy summed over the wrong letters, divided by the expected number at 10 %."""
    total: Tensor = cross_entropy(network(batch[0]), batch[1], reduction="sum") / (0.1 * batch[1].numel())
    return total


@healthy("typing errors")
def ever_more_typing_errors(seed: int) -> Setup:
    """Wrong letters are corrected by NAdam; their share rises from 5 % to 15 %, and the loss is their mean."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return cross_entropy(network(batch[0]), batch[1])

    module = ByStep(_reader(True), objective, partial(NAdam, lr=0.003))
    return Setup(module, _mistyped(350, 8, lambda step: 0.05 + 0.1 * min(1.0, step / 250)))


@exploding("typing errors")
def typing_errors_by_lion(seed: int) -> Setup:
    """The sum over wrong letters by Lion without normalization and decay, whose rate is that of descent."""
    return Setup(ByStep(_reader(False), _corrected, partial(Lion, lr=0.01)), _mistyped(300, 8, lambda step: 0.1))


def _mixed_voices(steps: int, size: int) -> list[Batch]:
    """Return the sum of a slow and a fast wave with noise, and the slow one."""
    time = torch.arange(32.0)
    phases, rates = 6.3 * torch.rand(2, steps, size, 1), torch.tensor([0.2, 0.9])[:, None, None, None]
    loudness = 0.3 + torch.rand(2, steps, size, 1)
    slow, fast = loudness * ((rates + 0.1 * torch.rand(2, steps, size, 1)) * time + phases).sin()
    return list(zip(slow + fast + 0.05 * torch.randn(steps, size, 32), slow, strict=True))


def _decibels(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the error relative to the voice, in decibels: below zero as soon as something is learned."""
    wrong: Tensor = (network(batch[0]) - batch[1]).square().sum(1)
    decibels: Tensor = 10 * (wrong / batch[1].square().sum(1) + 1e-6).log10()
    return decibels.mean()


def _relative(network: nn.Module, batch: Any, step: int) -> Tensor:
    """Return the error relative to the voices."""
    share: Tensor = (network(batch[0]) - batch[1]).square().sum() / batch[1].square().sum()
    return share


@healthy("decibels")
def voice_in_decibels(seed: int) -> Setup:
    """One of two voices, judged in decibels, by AdamW whose rate restarts every 100 steps."""
    module = ByStep(
        perceptron([32, 64, 32]),
        _decibels,
        partial(AdamW, lr=0.005),
        schedule=lambda step: 0.5 + 0.5 * math.cos(math.pi * (step % 100) / 100),
    )
    return Setup(module, _mixed_voices(400, 16))


@exploding("decibels")
def voice_in_decibels_by_momentum(seed: int) -> Setup:
    """The same by momentum; decibels have steep slopes where the error is small, and the rate rises by 2 % per step."""
    module = ByStep(
        perceptron([32, 64, 64, 32]), _decibels, sgd(0.005, 0.9), outcome=_relative, schedule=lambda step: 1.02**step
    )
    return Setup(module, _mixed_voices(500, 16))


def _codes(slope: Callable[[int], float], bounded: bool) -> Any:
    """Return an objective of codes: like for the same digits, and opposite for others."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        codes = slope(step) * network(batch[0])
        codes = codes.tanh() if bounded else codes
        alike = 2.0 * (batch[1][:, None] == batch[1]) - 1
        return mse_loss(codes @ codes.T / 12, alike)

    return objective


@healthy("binary codes")
def codes_made_binary(seed: int) -> Setup:
    """Codes of digits in twelve bits, whose sigmoids become ten times as steep by plan; Adam with warm-up."""
    module = ByStep(
        perceptron([64, 48, 12]),
        _codes(lambda step: 1 + 9 * min(1.0, step / 300), True),
        adam(0.003),
        schedule=lambda step: min(1.0, (step + 1) / 50),
    )
    return Setup(module, drawn(digits(), 400, 32))


@exploding("binary codes")
def codes_made_steeper_without_bounds(seed: int) -> Setup:
    """The same codes without sigmoids by descent, scaled up by 0.5 % per step, which makes the loss more curved."""
    module = ByStep(perceptron([64, 48, 12]), _codes(lambda step: 1.005**step, False), sgd(0.3))
    return Setup(module, drawn(digits(), 500, 32))


class _Bag(nn.Module):
    """Features of the digits of a bag, their mean weighted by attention, and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.scores = nn.Linear(32, 1)
        self.head = nn.Linear(32, 1)

    def forward(self, bags: Tensor) -> Tensor:
        """Return what is said of each bag."""
        features = self.features(bags)
        outputs: Tensor = self.head((self.scores(features).softmax(1) * features).sum(1))
        return outputs


def _bags(steps: int, size: int, most: Callable[[int], int], label: Callable[[Tensor, Tensor], Tensor]) -> list[Batch]:
    """Return bags of digits, and what is to be said of them."""
    pixels, labels = digits()
    batches = []
    for step in range(steps):
        rows = torch.randint(len(labels), (size, most(step)))
        batches.append((pixels[rows], label(labels[rows], pixels[rows])))
    return batches


@healthy("bags")
def bags_with_a_nine(seed: int) -> Setup:
    """Whether a bag of three to twelve digits has a nine, from batches of six and with 5 % wrong labels; RMSprop."""

    def label(digit: Tensor, _: Tensor) -> Tensor:
        wrong = torch.rand(len(digit), 1) < 0.05
        return ((digit == 9).any(1, keepdim=True) ^ wrong).float()

    sizes = torch.randint(3, 13, (450,)).tolist()
    module = ScenarioModule(_Bag(), binary_cross_entropy_with_logits, partial(RMSprop, lr=0.002))
    return Setup(module, _bags(450, 6, lambda step: sizes[step], label))


@exploding("bags")
def sums_over_growing_bags(seed: int) -> Setup:
    """How much is written in a bag, from the sum of its digits, by descent; a further digit every 20 steps."""

    def objective(network: nn.Module, batch: Any, step: int) -> Tensor:
        return mse_loss(network(batch[0].sum(1) / 8), batch[1])

    def label(_: Tensor, pixels: Tensor) -> Tensor:
        return (pixels > 0.5).float().mean((1, 2))[:, None]

    module = ByStep(nn.Linear(64, 1), objective, sgd(0.0067))
    return Setup(module, _bags(500, 16, lambda step: 24 + step // 20, label))
