"""Rolling quantiles against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from tests.detect.steps import through_checkpoint

finite = st.floats(-1e100, 1e100)


@given(st.lists(finite, min_size=1, max_size=40), st.integers(1, 15), st.floats(0.0, 1.0))
def test_a_window_gives_numpys_quantiles(values: list[float], size: int, share: float) -> None:
    """Median, quartiles and any other quantile are those of the last values, and no others."""
    window = RollingQuantiles(size)
    for value in values:
        window.add(value)
    kept = values[-size:]
    scale = max(map(abs, kept)) * 1e-9
    assert len(window) == len(kept)
    assert window.quantile(share) == pytest.approx(float(np.quantile(kept, share)), rel=1e-9, abs=scale)
    assert window.median == pytest.approx(float(np.median(kept)), rel=1e-9, abs=scale)
    quartiles = float(np.quantile(kept, 0.75) - np.quantile(kept, 0.25))
    assert window.spread == pytest.approx(quartiles / 1.349, rel=1e-3, abs=scale)


def test_the_spread_of_normal_numbers_is_their_standard_deviation() -> None:
    """The spread is in units that people know."""
    window = RollingQuantiles(20_000)
    for value in np.random.default_rng(0).normal(3.0, 2.0, 20_000):
        window.add(float(value))
    assert window.spread == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_nonfinite_value_enters_a_window(value: float) -> None:
    """NaN and infinity are refused aloud, for one of them would poison the window for good."""
    window = RollingQuantiles(3)
    window.add(1.0)
    with pytest.raises(ValueError, match="finite"):
        window.add(value)
    assert window.median == 1.0


@given(st.lists(finite, max_size=20), st.lists(finite, min_size=1, max_size=20))
def test_a_window_goes_through_a_checkpoint(before: list[float], after: list[float]) -> None:
    """A window that was saved and loaded goes on as one that never was."""
    window, other = RollingQuantiles(8), RollingQuantiles(8)
    for value in before:
        window.add(value)
    other.load_state_dict(through_checkpoint(window.state_dict()))
    for value in after:
        window.add(value)
        other.add(value)
    assert other.median == window.median
    assert other.spread == window.spread
