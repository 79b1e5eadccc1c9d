"""What processes measured of their shards, combined, against the same numbers measured in one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.distributed.shard_layout import ShardLayout, replicas
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.records import Norms
from tests.distributed.recorded import RecordedProcesses
from tests.measure.tensors import true_norm


@given(st.lists(st.lists(st.floats(width=32), max_size=5), min_size=1, max_size=4), st.integers(1, 3))
def test_norms_of_shards_are_those_of_the_whole(shards: list[list[float]], copies: int) -> None:
    """Shards of any values, each held by several processes, combine to the norm and count of the whole tensor."""
    layout = ShardLayout(copies=np.array([float(copies)]))
    packed = [layout.packed_norms(measure_norms([torch.tensor(shard)])) for shard in shards for _ in range(copies)]
    norms = layout.unpacked_norms(np.stack(packed))
    whole = [value for shard in shards for value in shard]
    assert norms.total == pytest.approx(true_norm(whole), rel=1e-6, nan_ok=True)
    assert norms.nonfinite_total == sum(not math.isfinite(value) for value in whole)


def test_counts_and_maxima_of_shards() -> None:
    """Counts add up, copies counting once, and the largest maximum wins, NaN above all; one message carries both."""
    layout = ShardLayout(RecordedProcesses(np.array([4.0, 3.0])), np.array([2.0, 1.0]))
    assert layout.sums(np.array([4.0, 5.0])).tolist() == [4.0, 8.0]
    world = RecordedProcesses(np.array([4.0, 3.0, 2.0, 1.0]))
    maxima, counts = ShardLayout(world, np.array([2.0, 1.0])).maxima_and_sums(
        np.array([math.nan, 1.0]), np.array([4.0, 5.0])
    )
    assert np.isnan(maxima[0])
    assert maxima[1] == 3.0
    assert counts.tolist() == [3.0, 6.0]
    assert len(world.sent) == 1


def test_several_norms_are_one_message() -> None:
    """Norms after and before a step are combined each for itself, with one collective."""
    world = RecordedProcesses(np.array([3.0, 1.0, 5.0, 0.0]))
    one, other = (Norms(np.array([norm]), np.array([count])) for norm, count in ((4.0, 0.0), (12.0, 2.0)))
    norms = ShardLayout(world, np.array([1.0])).several_norms([one, other])
    assert [(each.total, each.nonfinite_total) for each in norms] == [(5.0, 1), (13.0, 2)]
    assert len(world.sent) == 1


def test_whole_parameters_need_no_gathering() -> None:
    """Where each process holds all, numbers are taken as they are, and nothing is sent."""
    world = RecordedProcesses(np.zeros(1))
    layout = ShardLayout(world)
    norms = measure_norms([torch.ones(4)])
    assert layout.norms(norms) is norms
    assert layout.sums(np.ones(1)).tolist() == [1.0]
    assert layout.maxima_and_sums(np.ones(1), np.zeros(1)) == (np.ones(1), np.zeros(1))
    assert len(layout.packed_norms(norms)) == 0
    assert not world.sent
    assert replicas([torch.ones(2)], 2) is None
