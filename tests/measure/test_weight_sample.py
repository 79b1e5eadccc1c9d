"""The estimated change of weights against the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.measure.weight_sample import WeightSample
from lightning_gradexplode.measure.weights import WeightCopy

ALL_HERE = ShardLayout()


def weights(*sizes: int) -> list[nn.Parameter]:
    """Build weights of normally distributed numbers."""
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size)) for size in sizes]


def test_a_sample_comes_near_the_truth() -> None:
    """Of ten thousand sampled elements out of half a million, the ratio is right to a few percent."""
    parameters = weights(400_000, 100_000, 40)
    sample, copy = WeightSample(parameters, 10_000), WeightCopy(parameters)
    with torch.no_grad():
        for scale, parameter in zip((1e-3, 1e-2, 1e-1), parameters, strict=True):
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    estimate, truth = sample.change(parameters, ALL_HERE), copy.change(parameters, ALL_HERE)
    assert estimate.update_ratio == pytest.approx(truth.update_ratio, rel=0.05)
    assert estimate.update_ratio_each == pytest.approx(truth.update_ratio_each, rel=0.1)
    assert estimate.weights.each == pytest.approx(truth.weights.each, rel=1e-6)
    assert estimate.update_ratio != truth.update_ratio


def test_a_sample_of_everything_is_exact() -> None:
    """Tensors smaller than the sample are compared whole, an empty and a 0-dimensional one among them."""
    parameters = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.zeros(0)), nn.Parameter(torch.tensor(2.0))]
    sample = WeightSample(parameters, 1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.5)
    change = sample.change(parameters, ALL_HERE)
    assert change.update_ratio == pytest.approx(0.5, rel=1e-6)
    assert change.update_ratio_each.tolist() == [pytest.approx(0.5), 0.0, pytest.approx(0.5)]


def test_sampling_leaves_the_random_state_alone() -> None:
    """The places come from a generator of their own."""
    parameters = weights(1000)
    state = torch.get_rng_state()
    WeightSample(parameters, 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_lost_weights_are_seen_though_they_are_in_no_sample() -> None:
    """The norm of the weights is of all of them, so that one NaN in a hundred thousand shows."""
    parameters = weights(100_000)
    sample = WeightSample(parameters, 1)
    with torch.no_grad():
        parameters[0][12_345] = math.nan
    change = sample.change(parameters, ALL_HERE)
    assert change.weights.nonfinite.tolist() == [1]
