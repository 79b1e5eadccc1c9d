"""Real and made-up data, cut into the batches of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@cache
def digits() -> Batch:
    """Return scikit-learn's scanned digits: 64 pixels from 0 to 1, and the digit."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)


@cache
def diabetes(scaled: bool = False) -> Batch:
    """Return scikit-learn's diabetes data: ten measurements, and the disease's progress from 25 to 346."""
    measurements, progress = load_diabetes(return_X_y=True, scaled=False)
    inputs = torch.tensor(measurements, dtype=torch.float32)
    targets = torch.tensor(progress, dtype=torch.float32)[:, None]
    if scaled:
        inputs, targets = _standardised(inputs), _standardised(targets)
    return inputs, targets


@cache
def sunspots() -> Tensor:
    """Return the yearly number of sunspots, 1700 to 2008, raw."""
    from statsmodels.datasets import sunspots as dataset

    return torch.tensor(dataset.load_pandas().data["SUNACTIVITY"].to_numpy(), dtype=torch.float32)


@cache
def text() -> tuple[Tensor, int]:
    """Return the text of this project's licence as numbers of letters, and the number of letters there are."""
    letters = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    alphabet = {letter: number for number, letter in enumerate(sorted(set(letters)))}
    return torch.tensor([alphabet[letter] for letter in letters]), len(alphabet)


def drawn(data: Batch, steps: int, size: int) -> list[Batch]:
    """Draw batches at random, with the global random state."""
    inputs, targets = data
    return [(inputs[rows], targets[rows]) for rows in torch.randint(len(inputs), (steps, size))]


def lines(steps: int, size: int, length: int) -> list[Batch]:
    """Draw pieces of the text, each with the same piece one letter on, as flat targets."""
    letters, _ = text()
    batches = []
    for starts in torch.randint(len(letters) - length - 1, (steps, size)):
        pieces = torch.stack([letters[start : start + length + 1] for start in starts])
        batches.append((pieces[:, :-1], pieces[:, 1:].flatten()))
    return batches


def windows(series: Tensor, steps: int, size: int, length: int) -> list[Batch]:
    """Draw windows of a series, each with the value that follows it."""
    batches = []
    for starts in torch.randint(len(series) - length, (steps, size)):
        pieces = torch.stack([series[start : start + length + 1] for start in starts])
        batches.append((pieces[:, :-1, None], pieces[:, -1:]))
    return batches


def spoilt(batches: list[Batch], at: int, spoil: Callable[[Tensor, Tensor], None]) -> list[Batch]:
    """Change one batch."""
    inputs, targets = (tensor.clone() for tensor in batches[at])
    spoil(inputs, targets)
    return [*batches[:at], (inputs, targets), *batches[at + 1 :]]


def ring(steps: int, size: int) -> list[Batch]:
    """Draw points on a ring, and noise."""
    angles = 2 * torch.pi * torch.rand(steps, size)
    points = torch.stack([angles.cos(), angles.sin()], -1) + 0.05 * torch.randn(steps, size, 2)
    return list(zip(points, torch.randn(steps, size, 4), strict=True))


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)
