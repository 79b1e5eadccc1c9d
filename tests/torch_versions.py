"""Marks of tests that need what only newer versions of torch have."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.graph import values_are_readable
from tests.measure.sharding import VERSION

needs_graph_values = pytest.mark.skipif(
    not values_are_readable(), reason="this version of torch does not show the shapes in a graph"
)

needs_default_device = pytest.mark.skipif(
    VERSION < (2, 13), reason="Adam itself fails here with another default device"
)
