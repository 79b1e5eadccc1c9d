"""The program that counts false alarms on losses that wander."""

from __future__ import annotations

import pytest

from benchmarks.wandering import row


@pytest.mark.parametrize(
    "kind", ["restarts", "period that starts at its minimum", "weight of the loss raised a hundredfold"]
)
def test_a_healthy_series_has_no_alarm(kind: str) -> None:
    """Neither restarts nor a period nor another weight of the loss is a divergence."""
    assert row(kind, 1)[1:3] == ["0 of 1", "0.00"]
