"""What several processes measured, made one: against the same numbers measured in one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.distributed.exchange import PeerFailedError, StepExchange
from lightning_gradexplode.distributed.process_group import ALONE
from lightning_gradexplode.distributed.shard_layout import ShardLayout, replicas
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.records import FloatArray, Norms
from tests.measure.tensors import true_norm


class Rehearsed:
    """A world in which the other processes' values are known beforehand; this process is the last one."""

    def __init__(self, *others: FloatArray) -> None:
        self.size = len(others) + 1
        self.others = others
        self.sent: list[FloatArray] = []

    def gather(self, values: FloatArray) -> FloatArray:
        """Keep what is sent, and give it back behind what the others sent."""
        self.sent.append(values)
        return np.stack([*self.others, values])


def sent_by(loss: float | None, batch_idx: int = 0, has_gradients: bool = True) -> FloatArray:
    """Give what a process sends in an exchange."""
    world = Rehearsed(np.zeros(4))
    StepExchange(world).exchange(loss, batch_idx, has_gradients, np.zeros(0))
    return world.sent[0]


@given(st.lists(st.lists(st.floats(width=32), max_size=5), min_size=1, max_size=4), st.integers(1, 3))
def test_norms_of_shards_are_those_of_the_whole(shards: list[list[float]], copies: int) -> None:
    """ShardLayout of any values, each held by several processes, combine to the norm and count of the whole tensor."""
    layout = ShardLayout(copies=np.array([float(copies)]))
    packed = [layout.packed_norms(measure_norms([torch.tensor(shard)])) for shard in shards for _ in range(copies)]
    norms = layout.unpacked_norms(np.stack(packed))
    whole = [value for shard in shards for value in shard]
    assert norms.total == pytest.approx(true_norm(whole), rel=1e-6, nan_ok=True)
    assert norms.nonfinite_total == sum(not math.isfinite(value) for value in whole)


def test_counts_and_maxima_of_shards() -> None:
    """Counts add up, copies counting once, and the largest maximum wins, NaN above all; one message carries both."""
    layout = ShardLayout(Rehearsed(np.array([4.0, 3.0])), np.array([2.0, 1.0]))
    assert layout.sums(np.array([4.0, 5.0])).tolist() == [4.0, 8.0]
    world = Rehearsed(np.array([4.0, 3.0, 2.0, 1.0]))
    maxima, counts = ShardLayout(world, np.array([2.0, 1.0])).maxima_and_sums(
        np.array([math.nan, 1.0]), np.array([4.0, 5.0])
    )
    assert np.isnan(maxima[0])
    assert maxima[1] == 3.0
    assert counts.tolist() == [3.0, 6.0]
    assert len(world.sent) == 1


def test_several_norms_are_one_message() -> None:
    """Norms after and before a step are combined each for itself, with one collective."""
    world = Rehearsed(np.array([3.0, 1.0, 5.0, 0.0]))
    one, other = (Norms(np.array([norm]), np.array([count])) for norm, count in ((4.0, 0.0), (12.0, 2.0)))
    norms = ShardLayout(world, np.array([1.0])).several_norms([one, other])
    assert [(each.total, each.nonfinite_total) for each in norms] == [(5.0, 1), (13.0, 2)]
    assert len(world.sent) == 1


def test_whole_parameters_need_no_gathering() -> None:
    """Where each process holds all, numbers are taken as they are, and nothing is sent."""
    world = Rehearsed(np.zeros(1))
    layout = ShardLayout(world)
    norms = measure_norms([torch.ones(4)])
    assert layout.norms(norms) is norms
    assert layout.sums(np.ones(1)).tolist() == [1.0]
    assert layout.maxima_and_sums(np.ones(1), np.zeros(1)) == (np.ones(1), np.zeros(1))
    assert len(layout.packed_norms(norms)) == 0
    assert not world.sent
    assert replicas([torch.ones(2)], 2) is None


def test_a_single_process_agrees_with_itself() -> None:
    """Alone, the loss is the own one, and what is packed comes back."""
    loss, has_gradients, packed = StepExchange(ALONE).exchange(2.5, 7, True, np.array([1.0, 2.0]))
    assert (loss.value, loss.batch_idx, loss.rank, has_gradients) == (2.5, 7, None, True)
    assert packed.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("losses", "value", "rank"),
    [
        ([1.0, 3.0], 2.0, None),
        ([1.0, None], 1.0, None),
        ([None, 4.0], 4.0, None),
        ([None, None], None, None),
        ([math.inf, 1.0], math.inf, 0),
        ([1.0, -math.inf], -math.inf, 1),
        ([math.nan, math.inf], math.nan, 0),
        ([None, math.nan], math.nan, 1),
    ],
)
def test_the_loss_of_all_processes(losses: list[float | None], value: float | None, rank: int | None) -> None:
    """The loss is the mean of those there are, or the first one that is not finite, with its process and batch."""
    other, mine = losses
    loss, _, _ = StepExchange(Rehearsed(sent_by(other, batch_idx=5))).exchange(mine, 9, True, np.zeros(0))
    assert loss.value == (value if value is None else pytest.approx(value, nan_ok=True))
    assert loss.rank == rank
    if rank is not None:
        assert loss.batch_idx == (5, 9)[rank]


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_gradients_anywhere_count_for_all(mine: bool, other: bool) -> None:
    """All processes come to the same answer to whether there are gradients at all."""
    _, has_gradients, _ = StepExchange(Rehearsed(sent_by(1.0, has_gradients=other))).exchange(1.0, 0, mine, np.zeros(0))
    assert has_gradients == (mine or other)


def test_a_failure_elsewhere_is_heard() -> None:
    """A process whose monitor has failed says so in the others' next exchange, which ends theirs as well."""
    elsewhere = Rehearsed(np.zeros(6))
    failing = StepExchange(elsewhere)
    failing.exchange(1.0, 0, True, np.zeros(2))
    failing.withdraw(packs_gradients=True)
    with pytest.raises(PeerFailedError, match="rank 0"):
        StepExchange(Rehearsed(elsewhere.sent[-1])).exchange(1.0, 0, True, np.zeros(2))
