"""What is recorded of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradexplode.measure.batch_facts import collect_batch_facts, with_first_batch
from lightning_gradexplode.measure.run_facts import collect_run_facts
from lightning_gradexplode.records import BatchFacts
from tests.measure.batches import (
    INF,
    NAN,
    ONES,
    Graph,
    Pair,
    assert_facts_of,
    only,
)
from tests.measure.tensors import WILD, float_tensors, real_parts


@pytest.mark.parametrize("kind", [kind for kind in WILD if "1e300" not in kind and kind != "float64 wild"])
def test_fields_of_any_kind_are_measured_as_they_are(kind: str) -> None:
    """Counts, range, mean and deviation of any tensor are those of a plain loop over what it stores."""
    tensor = WILD[kind]()
    if "duplicates" in kind or kind == "sparse rows":
        tensor = tensor.coalesce()
    assert_facts_of(only(tensor), real_parts(tensor) if tensor.numel() else [])


@given(float_tensors())
def test_random_tensors_are_measured_as_they_are(tensor: Tensor) -> None:
    """The same holds for random values, types and layouts whose squares do not overflow."""
    bounded = torch.where(tensor.abs() > 1e15, math.inf, tensor)
    assert_facts_of(only(bounded), bounded.flatten().tolist())


def test_large_fields_are_scanned_whole() -> None:
    """One NaN among millions of elements is found, in one long row and in many short ones."""
    long = torch.ones(2, 1_500_000)
    long[1, 1_400_000] = NAN
    assert only(long).nonfinite_rows == (1,)
    short = torch.zeros(600_000, 3)
    short[599_999, 2] = INF
    assert (only(short).nonfinite_rows, only(short).inf_count) == ((599_999,), 1)
    scattered = torch.randn(900_000, generator=torch.Generator().manual_seed(0))
    assert_facts_of(only(scattered), scattered.tolist())


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.zeros(3, 2, device="meta"),
        lambda: torch.zeros(0, 4),
        lambda: torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "empty", "quantized"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_cannot_be_measured_is_listed(build: Callable[[], Tensor]) -> None:
    """Name, shape and type are there, and numbers where there are any."""
    tensor = build()
    found = only(tensor)
    assert (found.name, found.shape, found.nan_count) == ("batch", tuple(tensor.shape), 0)
    assert found.least in (None, pytest.approx(1.0))


def test_a_batch_has_its_place_in_the_run() -> None:
    """Index, epoch and sample indices are taken over, unless there are more indices than rows."""
    found = collect_batch_facts(ONES, batch_idx=3, epoch=2, is_last=True, sample_indices=(5, 6, 7, 8))
    assert found == BatchFacts(found.fields, 3, 2, 4, None, True, (5, 6, 7, 8))
    assert collect_batch_facts(ONES, sample_indices=(5, 6)).sample_indices is None


def test_a_batch_is_left_as_it_is() -> None:
    """No element, random number or version of a tensor changes."""
    tensor = torch.randn(9, 3)
    versions, random, copy = tensor._version, torch.get_rng_state(), tensor.clone()
    collect_batch_facts({"x": tensor, "y": np.arange(9), "z": [tensor[:, :1] for _ in range(9)]})
    assert torch.equal(tensor, copy)
    assert tensor._version == versions
    assert torch.equal(torch.get_rng_state(), random)


def test_the_sequence_length_is_recorded_of_recurrent_networks() -> None:
    """It is the second dimension of the input, and unknown where no module is recurrent."""
    batch = [torch.zeros(8, 30, 5), torch.zeros(8, dtype=torch.long)]
    recurrent = with_first_batch(collect_run_facts(nn.LSTM(5, 4), []), batch)
    assert (recurrent.batch_size, recurrent.sequence_length) == (8, 30)
    time_first = with_first_batch(collect_run_facts(nn.LSTM(5, 4), []), [torch.zeros(30, 8, 5), torch.zeros(8)])
    assert (time_first.batch_size, time_first.sequence_length) == (8, 30)
    tokens = with_first_batch(collect_run_facts(nn.GRU(5, 4), []), [torch.zeros(8, 12, dtype=torch.long)])
    assert tokens.sequence_length == 12
    assert with_first_batch(collect_run_facts(nn.Linear(5, 4), []), batch).sequence_length is None


def plain_batches() -> st.SearchStrategy[Any]:
    """Draw nested batches of tensors, numbers and what holds none."""
    leaves = st.one_of(float_tensors(), st.floats(), st.integers(), st.booleans(), st.text(), st.none(), st.binary())
    return st.recursive(
        leaves,
        lambda children: st.one_of(
            st.lists(children, max_size=5),
            st.tuples(children, children),
            st.dictionaries(st.text(max_size=3), children, max_size=4),
            st.builds(Pair, children, children),
            st.builds(Graph, x=children),
        ),
        max_leaves=20,
    )


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of a nested batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for one in batch.values():
            yield from tensors_in(one)
    elif isinstance(batch, (list, tuple)):
        for one in batch:
            yield from tensors_in(one)
    elif isinstance(batch, Graph):
        yield from tensors_in(batch._store)


@given(plain_batches())
def test_any_nested_batch_is_measured(batch: Any) -> None:
    """Nothing raises, and every NaN in a tensor of at least one element is counted."""
    found = collect_batch_facts(batch)
    numbers = list(tensors_in(batch))
    if len(found.fields) < 64:
        assert len(found.fields) >= len(numbers)
        of_tensors = sum(one.nan_count for one in found.fields)
        assert of_tensors >= sum(int(torch.isnan(one).sum()) for one in numbers)
