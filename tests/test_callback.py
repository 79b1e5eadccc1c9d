"""The callback outside of a fit."""

from __future__ import annotations

from lightning_gradexplode import GradientExplosionMonitor


def test_a_monitor_without_a_run_hands_on_what_it_was_given() -> None:
    """A checkpoint that is loaded and saved again without a fit in between loses nothing."""
    monitor = GradientExplosionMonitor()
    assert monitor.state_dict() == {}
    monitor.load_state_dict({"of an earlier": ["run"]})
    assert monitor.state_dict() == {"of an earlier": ["run"]}
