"""The program that counts false alarms on losses that wander."""

from __future__ import annotations

from benchmarks.wandering import row


def test_a_healthy_series_has_no_alarm_and_a_known_failure_is_shown() -> None:
    """Restarts are no divergence; a period that starts at its minimum is called one, as the documentation says."""
    assert row("restarts", 1)[1:3] == ["0 of 1", "0.00"]
    assert row("period that starts at its minimum", 1)[1] == "1 of 1"
