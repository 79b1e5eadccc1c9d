"""The weights' change by a step, against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import FloatArray

ALL_HERE = ShardLayout()
"""No weight is spread over processes."""

ordinary = st.floats(-1e6, 1e6, width=32)
pairs = st.lists(st.tuples(ordinary, ordinary), min_size=1, max_size=20)


@given(st.lists(pairs, min_size=1, max_size=4))
def test_change_of_any_weights(layers: list[list[tuple[float, float]]]) -> None:
    """The update ratio is the norm of the difference over the norm before, of all weights and of each."""
    before = [np.array([old for old, _ in layer]) for layer in layers]
    after = [np.array([new for _, new in layer]) for layer in layers]
    weights = [nn.Parameter(torch.tensor(layer, dtype=torch.float32)) for layer in before]
    copy = WeightCopy(weights)
    with torch.no_grad():
        for weight, layer in zip(weights, after, strict=True):
            weight.copy_(torch.tensor(layer))
    change = copy.change(weights, ALL_HERE)
    differences = [new - old for old, new in zip(before, after, strict=True)]
    expected = [ratio(difference, old) for difference, old in zip(differences, before, strict=True)]
    assert change.update_ratio_each.tolist() == [pytest.approx(value, rel=1e-5) for value in expected]
    total = ratio(np.concatenate(differences), np.concatenate(before))
    assert change.update_ratio == pytest.approx(total, rel=1e-5)
    assert change.weights.total == pytest.approx(float(np.linalg.norm(np.concatenate(after))), rel=1e-6)
    for difference, true in zip(change.differences, differences, strict=True):
        np.testing.assert_allclose(difference.numpy(), true, rtol=1e-6)


def ratio(difference: FloatArray, old: FloatArray) -> float:
    """Divide the norms as people would: what does not change is at 0, what comes from nothing at infinity."""
    change, size = math.hypot(*difference), math.hypot(*old)
    return 0.0 if change == 0 else math.inf if size == 0 else change / size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_change_in_every_type(dtype: torch.dtype) -> None:
    """Doubled weights have changed by 1.0, in every type that weights come in."""
    weight = nn.Parameter(torch.arange(1, 7).to(dtype).view(2, 3).t())
    copy = WeightCopy([weight])
    with torch.no_grad():
        weight.mul_(2)
    assert copy.change([weight], ALL_HERE).update_ratio == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [1.0, 0.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.nan),
        ([1.0, 1.0], [math.inf, 1.0], math.inf),
        ([math.nan, 1.0], [math.nan, 1.0], math.nan),
        ([2.0**-140], [2.0**-139], 1.0),
        ([1e30], [2e30], 1.0),
    ],
)
def test_change_at_the_edges(before: list[float], after: list[float], expected: float) -> None:
    """Zero, NaN, infinite, tiny and huge weights give the ratio that arithmetic gives, and 0/0 is no change."""
    weight = torch.tensor(before)
    copy = WeightCopy([weight])
    weight.copy_(torch.tensor(after))
    change = copy.change([weight], ALL_HERE)
    assert change.update_ratio == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert change.update_ratio_each.tolist() == [pytest.approx(expected, rel=1e-3, nan_ok=True)]


def test_weights_are_left_as_they_are() -> None:
    """Copying and comparing writes to no weight, and the copy is not moved by later writes to the weight."""
    weight = nn.Parameter(torch.randn(5))
    values, version = weight.detach().clone(), weight._version
    copy = WeightCopy([weight])
    assert copy.change([weight], ALL_HERE).update_ratio == 0.0
    assert torch.equal(weight, values)
    assert weight._version == version


def test_an_optimizer_without_weights_changes_none() -> None:
    """An optimizer without weights has not changed any."""
    none: list[Tensor] = []
    assert WeightCopy(none).change(none, ALL_HERE).update_ratio == 0.0


def test_weights_without_elements_do_not_change() -> None:
    """A copy of them is as empty as they are."""
    weights = [nn.Parameter(torch.zeros(3, 0))]
    change = WeightCopy(weights).change(weights, ALL_HERE)
    assert change.update_ratio_each.tolist() == [0.0]
