"""Rows of the batch are recognized by the shapes of tensors in a step; unclear shapes have no rows."""

from __future__ import annotations

import pytest
import torch

from lightning_gradexplode.diagnose.replay.observation.batch_shape import BatchShape
from lightning_gradexplode.measure.batch_fields import fields_of

BATCH = BatchShape.of(fields_of({"tokens": torch.zeros(6, 5), "labels": torch.zeros(6)}))


@pytest.mark.parametrize(
    ("shape", "place", "expected"),
    [
        ((6,), (4,), (4,)),
        ((6, 3), (2, 1), (2,)),
        ((6, 5, 8), (5, 0, 0), (5,)),
        ((5, 6, 8), (0, 3, 2), (3,)),
        ((30, 8), (11, 0), (2,)),
        ((12, 5, 5), (9, 1, 1), (4,)),
        ((), (), ()),
        ((7, 6), (1, 1), ()),
        ((12, 8), (1, 1), ()),
        ((8, 3), (1, 1), ()),
    ],
    ids=[
        "a number a row",
        "features",
        "sequences",
        "time first",
        "rows and time steps flattened",
        "heads of an attention",
        "one number",
        "as many features as rows",
        "a multiple that is no sequence",
        "nothing in common",
    ],
)
def test_rows_are_known_by_the_shape(shape: tuple[int, ...], place: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The batch has 6 rows of 5 time steps."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[place] = True

    assert BATCH.rows(mask) == expected


def test_a_batch_without_rows_names_none() -> None:
    """One row cannot stand out, and a batch without tensors has no rows."""
    assert BatchShape.of(fields_of(torch.zeros(1, 5))).rows(torch.ones(1, 5, dtype=torch.bool)) == ()
    assert BatchShape.of([]).rows(torch.ones(3, dtype=torch.bool)) == ()
