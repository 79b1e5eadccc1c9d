"""The record of a step."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lightning_gradexplode.records import Finding, Severity, StepRecord


def test_records_cannot_be_changed() -> None:
    """What has been handed on stays what it was."""
    for record in (StepRecord(step=0), Finding(0, "sign", Severity.INFO, None, 0.0, 0.0, "")):
        with pytest.raises(FrozenInstanceError):
            record.step = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "largest", "first_nonfinite"),
    [
        ([1.0, 3.0, 2.0], "b", None),
        ([1.0, math.inf, 2.0], "b", "b"),
        ([5.0, 1.0, math.nan], "c", "c"),
        ([math.nan, math.inf, 1.0], "a", "a"),
        ([0.0, 0.0, 0.0], "a", None),
    ],
)
def test_a_record_names_parameters(values: list[float], largest: str, first_nonfinite: str | None) -> None:
    """The parameter with the largest value is named, NaN counting as largest, and the first non-finite one."""
    record = StepRecord(step=0, parameters=("a", "b", "c"), per_parameter={"grad_norm": np.array(values)})
    assert record.largest("grad_norm") == largest
    assert record.first_nonfinite("grad_norm") == first_nonfinite


def test_a_record_without_a_quantity_names_nothing() -> None:
    """What was not measured, and a run without parameters, name no parameter."""
    for record in (StepRecord(step=0), StepRecord(step=0, per_parameter={"grad_norm": np.zeros(0)})):
        assert record.largest("grad_norm") is None
        assert record.first_nonfinite("grad_norm") is None
