"""Rows of a field that stand out, and its most common element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.measure.batch_facts import collect_batch_facts
from lightning_gradexplode.measure.usual_ranges import UsualRanges
from tests.measure.batches import (
    INF,
    NAN,
    assert_facts_of,
    fields_by_name,
    only,
)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_whole_numbers_have_their_most_common_one(dtype: torch.dtype) -> None:
    """Labels of any type are counted."""
    found = only(torch.tensor([3, 5, 3, 0, 3, 7]).to(dtype))
    assert_facts_of(found, [3.0, 5.0, 3.0, 0.0, 3.0, 7.0])
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


def test_rows_far_above_the_others_are_named_again_in_each_epoch() -> None:
    """A sample with a wrong unit is part of the usual range once it was in a batch that was sampled."""
    usual = UsualRanges()
    prices = torch.linspace(1.0, 9.0, 16).reshape(16, 1)
    prices[5] = 3e7
    usual.sample(prices, 0)
    (found,) = collect_batch_facts(prices, usual.before(1)).fields
    assert found.outlier_rows == (5,)
    prices[5] = 90.0
    assert only(prices).outlier_rows == (5,)
    assert collect_batch_facts(prices, usual.before(1)).fields[0].outlier_rows == ()


def test_rows_far_above_the_others_are_named() -> None:
    """A row counts as an outlier against the other rows; of two rows none does."""
    values = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    values[11, 3] = -500.0
    assert only(values).outlier_rows == (11,)
    assert only(values).row_size == values.abs().amax(1).median()
    assert only(torch.zeros(4, 8)).row_size is None
    assert only(torch.randn(16, 8)).outlier_rows == ()
    assert only(torch.tensor([[1.0], [1000.0]])).outlier_rows == ()
