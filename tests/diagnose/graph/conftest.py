"""All tests of this folder read values of graphs."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.graph import values_are_readable


@pytest.fixture(autouse=True)
def _skip_without_values() -> None:
    if not values_are_readable():
        pytest.skip("this version of torch does not show the shapes in a graph")
