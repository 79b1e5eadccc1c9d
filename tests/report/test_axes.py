"""Axes of charts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.report.axes import axis_for, tick_label


def test_positive_values_stand_at_their_logarithms() -> None:
    """A norm from 1e-12 to 1e23 fits, and powers of ten are at equal distances."""
    axis = axis_for(np.array([1e-12, 1e23]))
    assert axis.kind == "log"
    assert axis.positions(np.array([1e-12, 1.0, 1e23])).tolist() == pytest.approx([-12, 0, 23])
    assert len(axis.ticks) >= 4


def test_values_of_both_signs_keep_their_order() -> None:
    """A negative loss is on the axis: below zero, in order, zero in between."""
    values = np.array([-1e5, -3.0, 0.0, 2.0, 1e6])
    axis = axis_for(values)
    assert axis.kind == "symlog"
    positions = axis.positions(values)
    assert (np.diff(positions) > 0).all()
    assert positions[2] == 0
    assert "0" in [label for _, label in axis.ticks]


@given(st.lists(st.floats(), max_size=20))
def test_any_values_have_an_axis(values: list[float]) -> None:
    """Its ends are finite and apart, every tick is on it, and every finite value has a place."""
    axis = axis_for(np.array(values))
    assert math.isfinite(axis.low)
    assert axis.high > axis.low
    assert all(axis.low <= at <= axis.high for at, _ in axis.ticks)
    positions = axis.positions(np.array(values))
    finite = np.isfinite(values)
    assert np.isfinite(positions[finite]).all()
    assert np.isnan(positions[~finite]).all()


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6))
def test_every_range_has_ticks(low: float, factor: float) -> None:
    """Also one of much less than a decade."""
    assert len(axis_for(np.array([low, low * factor])).ticks) >= 2


@pytest.mark.parametrize(
    ("value", "text"), [(1e5, "1e5"), (0.01, "0.01"), (-1e-7, "-1e-7"), (0.0, "0"), (2500, "2500")]
)
def test_labels_of_ticks_are_short(value: float, text: str) -> None:
    """Powers of ten have no sign and no leading zero in their exponent."""
    assert tick_label(value) == text


@pytest.mark.parametrize("largest", [1.5, 30.0, 500.0, 1e30])
@pytest.mark.parametrize("smallest", [1.0, -1.0])
def test_labels_of_ticks_do_not_overlap(smallest: float, largest: float) -> None:
    """Between two ticks there is an eighth of the axis, which is the height of some lines of text."""
    axis = axis_for(np.array([smallest, largest]))
    positions = [at for at, _ in axis.ticks]
    assert len(positions) >= 2
    assert np.diff(positions).min() >= (axis.high - axis.low) / 8
