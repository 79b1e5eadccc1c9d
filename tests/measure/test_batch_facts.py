"""What is recorded of a batch."""

from __future__ import annotations

import math
from collections import Counter, UserDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_gradexplode.measure.batch_facts import collect_batch_facts, with_first_batch
from lightning_gradexplode.measure.run_facts import collect_run_facts
from lightning_gradexplode.records import BatchFacts, FieldFacts
from tests.measure.sharding import VERSION
from tests.measure.tensors import WILD, float_tensors, real_parts

NAN, INF = math.nan, math.inf

Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Detection:
    """A dataclass with a dictionary in it."""

    image: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)


class Graph:
    """A graph as libraries keep it: tensors behind a private attribute, and a method `to`."""

    def __init__(self, **tensors: Any) -> None:
        self._store = tensors

    def to(self, device: str) -> Graph:
        return self


class Graphs:
    """Several graphs in one, as libraries keep them: with numbers and slices in further private attributes."""

    def __init__(self, **tensors: Any) -> None:
        self._store = UserDict(tensors)
        self._num_graphs = 2
        self._slices = {"x": torch.tensor([0, 2, 4])}

    def to(self, device: str) -> Graphs:
        return self


class Image(Tensor):
    """A tensor class of a library."""


class Encoding(UserDict[str, Any]):
    """A tokenizer's output: a mapping that is no dict."""


def fields_by_name(batch: Any) -> dict[str, FieldFacts]:
    """Collect the facts of a batch's fields."""
    return {one.name: one for one in collect_batch_facts(batch).fields}


def only(batch: Any) -> FieldFacts:
    """Collect the facts of a batch's only field."""
    (found,) = collect_batch_facts(batch).fields
    return found


ONES = torch.ones(4, 2)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (ONES, ["batch"]),
        ([ONES, ONES], ["[0]", "[1]"]),
        ((ONES, (ONES, {"y": ONES})), ["[0]", "[1][0]", "[1][1].y"]),
        ({"image": ONES, "labels": {"boxes": ONES}}, ["image", "labels.boxes"]),
        (Pair(ONES, ONES), ["image", "label"]),
        (Detection(ONES, {"boxes": ONES}), ["image", "labels.boxes"]),
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


def truth_of(values: list[float]) -> dict[str, Any]:
    """Work out what is recorded of some elements, in plain Python."""
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / len(finite) if finite else None
    return {
        "nan_count": sum(map(math.isnan, values)),
        "inf_count": sum(map(math.isinf, values)),
        "least": min(finite, default=None),
        "greatest": max(finite, default=None),
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / len(finite))
        if mean is not None
        else None,
        "is_integral": bool(finite) and all(value == round(value) for value in finite),
    }


def assert_true(found: FieldFacts, values: list[float]) -> None:
    """Compare the facts of a field with the truth about its elements."""
    for name, expected in truth_of(values).items():
        actual = getattr(found, name)
        if expected is None or isinstance(expected, (int, bool)):
            assert actual == expected, name
        else:
            scale = max(map(abs, (value for value in values if math.isfinite(value))), default=0.0)
            tolerance = 0.0 if name in ("least", "greatest") else 1e-6 * scale
            assert actual == pytest.approx(expected, rel=1e-6, abs=tolerance), name
    if found.is_integral and values:
        counts = Counter(value for value in values if math.isfinite(value))
        most = max(counts.values())
        assert found.most_common_share == pytest.approx(most / len(values))
        assert found.most_common is not None
        assert counts[found.most_common] == most


@pytest.mark.parametrize("kind", [kind for kind in WILD if "1e300" not in kind and kind != "float64 wild"])
def test_fields_of_any_kind_are_measured_as_they_are(kind: str) -> None:
    """Counts, range, mean and deviation of any tensor are those of a plain loop over what it stores."""
    tensor = WILD[kind]()
    if "duplicates" in kind or kind == "sparse rows":
        tensor = tensor.coalesce()
    assert_true(only(tensor), real_parts(tensor) if tensor.numel() else [])


@given(float_tensors())
def test_random_tensors_are_measured_as_they_are(tensor: Tensor) -> None:
    """The same holds for random values, types and layouts whose squares do not overflow."""
    bounded = torch.where(tensor.abs() > 1e15, math.inf, tensor)
    assert_true(only(bounded), bounded.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_whole_numbers_have_their_most_common_one(dtype: torch.dtype) -> None:
    """Labels of any type are counted."""
    found = only(torch.tensor([3, 5, 3, 0, 3, 7]).to(dtype))
    assert_true(found, [3.0, 5.0, 3.0, 0.0, 3.0, 7.0])
    assert (found.most_common, found.dtype) == (3.0, str(dtype).removeprefix("torch."))


def test_ignored_labels_and_masks_show() -> None:
    """Labels that are all ignored, a mask that is all false, and a wide range of numbers are seen by their shares."""
    batch = {
        "labels": torch.full((4, 8), -100),
        "mask": torch.zeros(4, 8, dtype=torch.bool),
        "time": torch.tensor([10**12, 5, 10**12, 7]),
        "flag": torch.tensor([True, True, False, True]),
    }
    found = fields_by_name(batch)
    assert (found["labels"].most_common, found["labels"].most_common_share) == (-100.0, 1.0)
    assert (found["mask"].most_common, found["mask"].most_common_share) == (0.0, 1.0)
    assert (found["time"].most_common, found["time"].most_common_share) == (10.0**12, 0.5)
    assert found["flag"].most_common_share == 0.75


def test_rows_with_nan_are_named() -> None:
    """The first 32 rows with an element that is not finite are there, whatever the shape of a row."""
    images = torch.zeros(50, 3, 4, 4)
    images[7, 1, 2, 3], images[9, 0, 0, 0], images[9, 1, 0, 0] = NAN, INF, -INF
    found = fields_by_name([images, torch.arange(50)])["[0]"]
    assert (found.nonfinite_rows, found.nan_count, found.inf_count) == ((7, 9), 1, 2)
    assert only(torch.full((50,), NAN)).nonfinite_rows == tuple(range(32))
    assert only(torch.tensor(NAN)).nonfinite_rows == ()


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=50), st.booleans())
def test_rows_are_those_of_a_plain_loop(rows: list[list[float]], is_transposed: bool) -> None:
    """Rows that are not finite are found in any layout."""
    tensor = torch.tensor(rows)
    found = only(tensor.t().contiguous().t() if is_transposed else tensor)
    assert found.nonfinite_rows == tuple(i for i, row in enumerate(rows) if not all(map(math.isfinite, row)))[:32]


def test_large_fields_are_scanned_whole() -> None:
    """One NaN among millions of elements is found, in one long row and in many short ones."""
    long = torch.ones(2, 1_500_000)
    long[1, 1_400_000] = NAN
    assert only(long).nonfinite_rows == (1,)
    short = torch.zeros(600_000, 3)
    short[599_999, 2] = INF
    assert (only(short).nonfinite_rows, only(short).inf_count) == ((599_999,), 1)
    scattered = torch.randn(900_000, generator=torch.Generator().manual_seed(0))
    assert_true(only(scattered), scattered.tolist())


def test_rows_far_above_the_others_are_named() -> None:
    """A row counts as an outlier against the other rows; of two rows none does."""
    values = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    values[11, 3] = -500.0
    assert only(values).outlier_rows == (11,)
    assert only(torch.randn(16, 8)).outlier_rows == ()
    assert only(torch.tensor([[1.0], [1000.0]])).outlier_rows == ()


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
