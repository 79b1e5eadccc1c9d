"""Numbers read from where tensors live, against the numbers that were put there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.reading import PendingRead, read

KINDS = [torch.float32, torch.int64, torch.float64, torch.bfloat16, torch.float16, torch.bool]


@pytest.mark.parametrize("number", [0, 1, 5, 100])
@pytest.mark.parametrize("pretends", [False, True], ids=["on the processor", "as from an accelerator"])
def test_numbers_of_many_types_keep_their_places(monkeypatch: pytest.MonkeyPatch, number: int, pretends: bool) -> None:
    """Of scalars and single elements of any type, each comes back in its own place, to the last bit."""
    if pretends and number:
        monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    random = np.random.default_rng(number)
    values = [
        torch.tensor(random.normal() * 100).to(KINDS[random.integers(len(KINDS))]).reshape([[], [1], [1, 1]][place % 3])
        for place in range(number)
    ]
    truth = [float(value) for value in values]
    assert read(values).tolist() == truth
    assert PendingRead(values).values().tolist() == truth


def test_what_is_read_needs_no_gradient() -> None:
    """A loss that is still part of a graph is read like any other number, and infinities and NaN come through."""
    loss = torch.ones(3, requires_grad=True).sum()
    numbers = read([loss, torch.tensor(math.inf), torch.tensor(math.nan)] * 4)
    np.testing.assert_array_equal(numbers, [3.0, math.inf, math.nan] * 4)
