"""What several processes learn of a step in one exchange."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.distributed.process_group import ALONE, ProcessFailedError
from lightning_gradexplode.distributed.shard_layout import ShardLayout
from lightning_gradexplode.records import FloatArray
from tests.distributed.recorded import RecordedProcesses


def sent_by(loss: float | None, batch_idx: int = 0, has_gradients: bool = True) -> FloatArray:
    """Return what a process sends in an exchange."""
    world = RecordedProcesses(np.zeros(4))
    StepExchange(world).exchange(loss, batch_idx, has_gradients, np.zeros(0))
    return world.sent[0]


def test_a_single_process_agrees_with_itself() -> None:
    """Alone, the loss is the own one, and what is packed comes back."""
    shared = StepExchange(ALONE).exchange(2.5, 7, True, np.array([1.0, 2.0]), note=3)
    loss = shared.loss
    assert (loss.value, loss.batch_idx, loss.rank, shared.has_gradients, shared.notes) == (2.5, 7, None, True, (3,))
    assert shared.packed.tolist() == [[1.0, 2.0]]


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
    loss = StepExchange(RecordedProcesses(sent_by(other, batch_idx=5))).exchange(mine, 9, True, np.zeros(0)).loss
    assert loss.value == (value if value is None else pytest.approx(value, nan_ok=True))
    assert loss.rank == rank
    if rank is not None:
        assert loss.batch_idx == (5, 9)[rank]


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_gradients_anywhere_count_for_all(mine: bool, other: bool) -> None:
    """All processes come to the same answer to whether there are gradients at all."""
    elsewhere = RecordedProcesses(sent_by(1.0, has_gradients=other))
    assert StepExchange(elsewhere).exchange(1.0, 0, mine, np.zeros(0)).has_gradients == (mine or other)


@pytest.mark.parametrize("has_loss", [True, False])
def test_notes_of_all_processes_arrive(has_loss: bool) -> None:
    """They travel with the flags of a step, on the host and from a device, whatever else the flags say."""
    other = RecordedProcesses(np.zeros(4))
    StepExchange(other).exchange(1.0 if has_loss else None, 0, True, np.zeros(0), note=2**40 + 1)
    world = RecordedProcesses(other.sent[0])
    assert StepExchange(world).exchange(1.0, 0, False, np.zeros(0), note=6).notes == (2**40 + 1, 6)
    exchange = StepExchange(RecordedProcesses(other.sent[0]))
    gathered = exchange.start(None, 0, False, torch.zeros(0, dtype=torch.float64), note=5)
    assert exchange.finish(gathered.numpy(), 0).notes == (2**40 + 1, 5)


def test_a_step_that_is_left_out_elsewhere_is_heard() -> None:
    """The processes that make the step and the one that leaves it out end their exchanges, with its rank and loss."""
    left_out = RecordedProcesses(sent_by(1.0))
    with pytest.raises(ProcessFailedError, match="rank 1 leaves out the optimizer step of its batch 7, with a loss of"):
        StepExchange(left_out).report_missing_step(math.nan, 7)
    with pytest.raises(ProcessFailedError, match="rank 0 leaves out the optimizer step of its batch 7, with a loss of"):
        StepExchange(RecordedProcesses(left_out.sent[0])).exchange(1.0, 7, True, np.zeros(0))


def test_a_step_that_all_processes_leave_out_is_no_failure() -> None:
    """Each of them reports it, and the exchange of the next step is the usual one."""
    left_out = RecordedProcesses(sent_by(1.0))
    with pytest.raises(ProcessFailedError):
        StepExchange(left_out).report_missing_step(None, 7)
    exchange = StepExchange(RecordedProcesses(left_out.sent[0]))
    exchange.report_missing_step(None, 7)
    exchange.world = RecordedProcesses(sent_by(3.0))
    assert exchange.exchange(1.0, 8, True, np.zeros(0)).loss.value == 2.0


def test_a_process_that_ends_a_batch_without_a_step_that_others_make_ends_all() -> None:
    """Where each batch ends with an exchange of its loss; its rank and loss are those of the line."""
    over = RecordedProcesses(sent_by(1.0))
    with pytest.raises(ProcessFailedError, match="rank 1 leaves out the optimizer step of its batch 7, with a loss of"):
        StepExchange(over).exchange(math.nan, 7, False, np.zeros(0), ends_batch=True)
    with pytest.raises(ProcessFailedError, match="rank 0 leaves out the optimizer step of its batch 7, with a loss of"):
        StepExchange(RecordedProcesses(over.sent[0])).exchange(1.0, 7, True, np.zeros(0))
    both = StepExchange(RecordedProcesses(over.sent[0]))
    assert math.isnan(both.exchange(1.0, 7, False, np.zeros(0), ends_batch=True).loss.value or 0.0)


def test_a_failure_elsewhere_is_heard() -> None:
    """A process whose monitor has failed says so in the others' next exchange, which ends theirs as well."""
    elsewhere = RecordedProcesses(np.zeros(6))
    failing = StepExchange(elsewhere)
    failing.exchange(1.0, 0, True, np.zeros(2))
    failing.withdraw(packs_gradients=True)
    with pytest.raises(ProcessFailedError, match="rank 0"):
        StepExchange(RecordedProcesses(elsewhere.sent[-1])).exchange(1.0, 0, True, np.zeros(2))


@pytest.mark.parametrize(("parameters", "ranks"), [(0, 64), (150, 64), (1200, 8)])
def test_a_message_of_many_processes_is_small(parameters: int, ranks: int) -> None:
    """Packed on the device, it holds four numbers and a norm for each sharded parameter, whatever the ranks are."""
    others = [np.concatenate([[0.0, float(rank), 5.0, 2.0], np.full(parameters, 3.0)]) for rank in range(ranks - 1)]
    world = RecordedProcesses(*others)
    exchange = StepExchange(world)
    packed = torch.full((parameters,), 4.0, dtype=torch.float64)
    gathered = exchange.start(torch.tensor(float(ranks - 1)), 5, True, packed)
    assert [len(message) for message in world.sent] == [4 + parameters]
    shared = exchange.finish(gathered.numpy(), 5)
    assert (shared.loss.value, shared.loss.rank, shared.has_gradients) == ((ranks - 1) / 2, None, True)
    assert shared.packed.shape == (ranks, parameters)
    combined = ShardLayout(world, np.ones(parameters)).finite_norms(shared.packed)
    assert combined is not None
    assert combined.each == pytest.approx((9.0 * (ranks - 1) + 16.0) ** 0.5)


def test_a_loss_of_one_process_in_many_that_is_not_finite_is_named() -> None:
    """Its rank and batch are known to all, also where the numbers are packed on the device."""
    world = RecordedProcesses(*[np.array([0.0, np.nan if rank == 41 else 1.0, 7.0, 2.0]) for rank in range(63)])
    exchange = StepExchange(world)
    gathered = exchange.start(None, 9, False, torch.zeros(0, dtype=torch.float64))
    shared = exchange.finish(gathered.numpy(), 9)
    assert (shared.loss.rank, shared.loss.batch_idx, shared.has_gradients) == (41, 7, True)


@given(st.binary(max_size=50))
def test_bytes_arrive_as_they_were_sent(data: bytes) -> None:
    """No bit changes on the way, also of those that are no number as a float64."""
    assert StepExchange(ALONE).broadcast(data, 0) == data
    assert StepExchange(ALONE).broadcast(b"\xff" * 24, 0) == b"\xff" * 24
