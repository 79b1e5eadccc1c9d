"""The tensors of a batch of any kind, their names, and the number of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lightning_gradexplode.measure.batch_facts import collect_batch_facts
from tests.measure.batches import (
    INF,
    NAN,
    ONES,
    Detection,
    Encoding,
    Graph,
    Graphs,
    Image,
    Pair,
    Slotted,
    fields_by_name,
    only,
)
from tests.measure.sharding import VERSION


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (ONES, ["batch"]),
        ([ONES, ONES], ["[0]", "[1]"]),
        ((ONES, (ONES, {"y": ONES})), ["[0]", "[1][0]", "[1][1].y"]),
        ({"image": ONES, "labels": {"boxes": ONES}}, ["image", "labels.boxes"]),
        (Pair(ONES, ONES), ["image", "label"]),
        (Detection(ONES, {"boxes": ONES}), ["image", "labels.boxes"]),
        (Slotted(ONES, {"z": ONES}), ["x", "y.z"]),
        (Slotted("no", "tensor"), []),
        (Graph(x=ONES, edge_index=ONES), ["x", "edge_index"]),
        (Graphs(x=ONES, batch=torch.tensor([0, 0, 1, 1])), ["x", "batch"]),
        (ONES.as_subclass(Image), ["batch"]),
        (Encoding(input_ids=ONES, text=["a", "b"]), ["input_ids"]),
        ({"path": ["a", "b"], "none": None, "set": {1}, "bytes": b"x", "x": ONES}, ["x"]),
        ({"array": np.ones((4, 2)), "names": np.array(["a", "b"])}, ["array"]),
        ({"weight": 0.5, "flag": True, "sizes": [1, 2, 3]}, ["weight", "flag", "sizes"]),
        (pack_sequence([ONES, ONES[:2]]), ["batch"]),
        ([ONES] * 9, ["batch"]),
        ([{"boxes": ONES, "id": "a"} for _ in range(2)], ["boxes[0]", "boxes[1]"]),
        ([{"boxes": ONES, "id": "a"} for _ in range(9)], ["boxes"]),
        ([{"x": ONES}, {"y": ONES}], ["[0].x", "[1].y"]),
        ({"tokens": [[1, 2]] * 5 + [[3]] * 5, "x": ONES}, ["tokens", "x"]),
        ({"signals": [np.ones(3), np.ones(5)] * 5, "x": ONES}, ["signals", "x"]),
        ([iter([ONES]), (one for one in [ONES]), nn.Linear(2, 2), ONES], ["[3]"]),
        ([], []),
        (None, []),
        ("text", []),
    ],
)
def test_every_tensor_of_a_batch_has_its_name(batch: Any, names: list[str]) -> None:
    """Fields of any kind of batch are called what the user calls them; what holds no numbers is passed over."""
    assert list(fields_by_name(batch)) == names


def test_an_iterator_in_a_batch_is_not_consumed() -> None:
    """What can be iterated over once is left to the run."""
    one = iter([ONES])
    collect_batch_facts([one, ONES])
    assert next(one) is ONES


def test_a_batch_that_contains_itself_ends() -> None:
    """A circle ends at some depth, and any number of fields at 64."""
    batch: list[Any] = [ONES]
    batch.append(batch)
    assert 1 <= len(collect_batch_facts(batch).fields) <= 64
    assert len(collect_batch_facts({str(index): ONES for index in range(200)}).fields) == 64


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ([torch.zeros(4, 3), torch.zeros(4)], 4),
        ([torch.zeros(30, 8, 5), torch.zeros(8)], 8),
        ([torch.zeros(32, 128), torch.zeros(32, 128), torch.zeros(32, 128)], 32),
        ({"x": torch.zeros(7, 2), "scale": 0.5}, 7),
        ([torch.zeros(3, 6, 6)] * 12, 12),
        (pack_sequence([torch.zeros(5, 2), torch.zeros(3, 2)], enforce_sorted=False), 2),
        (torch.tensor(1.0), None),
        ({}, None),
    ],
)
def test_the_number_of_rows_is_that_of_the_samples(batch: Any, size: int | None) -> None:
    """It is the dimension that the fields agree on."""
    assert collect_batch_facts(batch).size == size


def test_rows_are_those_of_the_batch_where_time_comes_first() -> None:
    """A field of shape (time, batch, features) has the rows of its second dimension."""
    inputs = torch.randn(30, 8, 5)
    inputs[20, 6, 1] = NAN
    assert fields_by_name([inputs, torch.zeros(8)])["[0]"].nonfinite_rows == (6,)


def test_rows_of_sequences_of_different_lengths_are_the_sequences() -> None:
    """In a packed, a nested and a listed batch a row is one sequence."""
    sequences = [torch.randn(length, 2) for length in (3, 6, 2, 5, 4, 7, 1, 2, 3)]
    sequences[4][2, 1] = NAN
    assert only(pack_sequence(sequences, enforce_sorted=False)).nonfinite_rows == (4,)
    assert only(sequences).nonfinite_rows == (4,)
    assert only([torch.zeros(0, 2), *sequences]).nonfinite_rows == (5,)  # as boxes of an image without objects
    assert only(torch.nested.nested_tensor(sequences, layout=torch.jagged)).nonfinite_rows == (4,)
    steps = [torch.ones(4, 2) for _ in range(12)]
    steps[9][3, 0] = INF
    assert fields_by_name({"steps": steps, "label": torch.zeros(4)})["steps"].nonfinite_rows == (3,)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_rows_of_nested_fields_of_other_layouts_are_theirs() -> None:
    """A nested tensor in strided layout, and a jagged one of which only parts are valid, have their sequences."""
    sequences = [torch.zeros(3, 2), torch.zeros(5, 2), torch.full((2, 2), NAN)]
    assert only(torch.nested.nested_tensor(sequences)).nonfinite_rows == (2,)
    if VERSION < (2, 5):
        return  # there, a jagged tensor of which only parts are valid has offsets that lie outside of it
    padded = torch.full((3, 5, 2), NAN)
    padded[1] = 0.0
    lengths, starts = torch.tensor([0, 5, 1]), torch.zeros(3, dtype=torch.long)
    narrow = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    assert (only(narrow).nonfinite_rows, only(narrow).nan_count) == ((2,), 2)


def test_class_weights_have_no_rows_of_samples() -> None:
    """Where rows are samples of a dataset, a field without them names no rows."""
    batch = {"x": torch.zeros(6, 3), "y": torch.zeros(6), "class_weights": torch.tensor([1.0, NAN, 2.0, 3.0])}
    assert fields_by_name(batch)["class_weights"].nonfinite_rows == (1,)
    known = collect_batch_facts(batch, sample_indices=tuple(range(6)))
    assert (known.fields[2].nonfinite_rows, known.fields[2].nan_count) == ((), 1)


def test_rows_of_sparse_fields_are_theirs() -> None:
    """A stored value that is not finite belongs to its row."""
    dense = torch.zeros(5, 4)
    dense[3, 1], dense[1, 2] = NAN, 2.0
    assert only(dense.to_sparse()).nonfinite_rows == (3,)
    assert only(dense.to_sparse_csr()).nonfinite_rows == (3,)
    assert only(dense.to_sparse()).shape == (5, 4)
