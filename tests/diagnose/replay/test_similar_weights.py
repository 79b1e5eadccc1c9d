"""Weights that are lost are replaced by others of the scale that they had."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradexplode.diagnose.replay import similar_weights
from lightning_gradexplode.records import ParameterFacts


def network(*lost: str) -> nn.Sequential:
    """Return a network in which some parameters and buffers are NaN."""
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if name in lost:
            tensor.data.fill_(math.nan)
    return net


FACTS = (
    ParameterFacts("0.weight", (64, 64), std=0.3, largest=1.1),
    ParameterFacts("0.bias", (64,), std=0.0, largest=0.0),
    ParameterFacts("1.weight", (64,), std=1.0, largest=1.0),
    ParameterFacts("1.bias", (64,), std=math.nan, largest=math.nan),
)


def test_each_kind_of_tensor_has_the_scale_of_the_start() -> None:
    """Matrices are drawn, tensors of one value have it again, and running averages are those of a fresh module."""
    lost = ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var")
    found = similar_weights(network(*lost), FACTS)
    assert found is not None
    assert set(found) == set(lost)
    assert float(found["0.weight"].square().mean().sqrt()) == pytest.approx(0.3, rel=0.05)
    assert {name: sorted(set(found[name].tolist())) for name in lost[1:]} == {
        "0.bias": [0.0],
        "1.weight": [1.0],
        "1.running_mean": [0.0],
        "1.running_var": [1.0],
    }


def test_weights_that_are_not_lost_stay_and_others_without_a_scale_have_no_substitute() -> None:
    """None of a finite network is replaced, and the random numbers of the run are not used."""
    assert similar_weights(network(), FACTS) is None
    assert similar_weights(network("1.bias"), FACTS) is None
    assert similar_weights(network("0.weight"), FACTS[1:]) is None
    net = network("0.weight")
    before = torch.get_rng_state()
    assert similar_weights(net, FACTS) is not None
    assert torch.equal(torch.get_rng_state(), before)
