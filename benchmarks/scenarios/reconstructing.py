"""Runs whose targets are their inputs, in full or in part: autoencoders, masked inputs, several resolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss

from benchmarks.scenarios.data import Batch, digits, drawn
from benchmarks.scenarios.family import Setup, exploding, healthy
from benchmarks.scenarios.module import ScenarioModule, adam, perceptron, sgd


def _images(steps: int, size: int) -> list[Batch]:
    return [(inputs, inputs) for inputs, _ in drawn(digits(), steps, size)]


@healthy("autoencoders")
def bottleneck(seed: int) -> Setup:
    """An autoencoder whose loss, a mean over pixels, is small, so that descent takes a rate of 2."""
    module = ScenarioModule(perceptron([64, 32, 8, 32, 64]), mse_loss, sgd(2.0, momentum=0.9))
    return Setup(module, _images(400, 32))


@exploding("autoencoders")
def bottleneck_too_fast(seed: int) -> Setup:
    """An autoencoder of raw pixels by descent, at a rate twenty times too high."""
    batches = [(16 * inputs, 16 * inputs) for inputs, _ in _images(300, 32)]
    return Setup(ScenarioModule(perceptron([64, 32, 8, 32, 64]), mse_loss, sgd(0.5, momentum=0.9)), batches)


@healthy("masked inputs")
def mask_grows(seed: int) -> Setup:
    """The share of pixels that are hidden and have to be found grows from a tenth to nine tenths: the loss rises."""
    batches = []
    for step, (inputs, _) in enumerate(_images(300, 32)):
        kept = torch.rand_like(inputs) > 0.1 + 0.8 * step / 300
        batches.append((inputs * kept, inputs))
    return Setup(ScenarioModule(perceptron([64, 64, 64]), mse_loss, adam(0.005)), batches)


@exploding("masked inputs")
def mask_divides_by_nothing(seed: int) -> Setup:
    """Kept pixels are divided by the share kept, which shrinks to one in a thousand: inputs and gradients grow."""
    batches = []
    for step, (inputs, _) in enumerate(_images(300, 32)):
        share = 10 ** (-3 * step / 300)
        batches.append((inputs * (torch.rand_like(inputs) < share) / share, inputs))
    return Setup(ScenarioModule(perceptron([64, 64, 64]), mse_loss, sgd(10.0, momentum=0.9)), batches)


class _AnySize(nn.Module):
    """A convolutional classifier of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.body(images)
        return logits


def _resolutions(steps: int, gain: float) -> list[Batch]:
    batches = []
    for step, (inputs, labels) in enumerate(drawn(digits(), steps, 32)):
        images = inputs.view(-1, 1, 8, 8)
        batches.append((gain * images if step >= steps // 2 else avg_pool2d(images, 2), labels))
    return batches


@healthy("resolutions")
def finer_images(seed: int) -> Setup:
    """Images of 4 by 4 pixels, and from the middle on of 8 by 8."""
    return Setup(ScenarioModule(_AnySize(), cross_entropy, sgd(0.1, momentum=0.9)), _resolutions(300, 1.0))


@exploding("resolutions")
def finer_images_unscaled(seed: int) -> Setup:
    """From the middle on, images are finer, and their pixels run to 80 and not to 1."""
    return Setup(ScenarioModule(_AnySize(), cross_entropy, sgd(0.2, momentum=0.9)), _resolutions(300, 80.0))
