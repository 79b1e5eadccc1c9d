"""What the checked arguments mean."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradexplode.arguments import Arguments, LoggingIntervals


def settings(scalars: int | None, histograms: int | None) -> Arguments:
    """Build settings of which only the intervals count."""
    plain: dict[str, Any] = {
        "per_parameter": False,
        "include": ("*",),
        "exclude": (),
        "detectors": (),
        "clip": None,
        "responses": (),
        "report": False,
    }
    return Arguments(log_every_n_steps=scalars, histogram_every_n_steps=histograms, **plain)


@pytest.mark.parametrize(
    ("scalars", "histograms", "trainer", "expected"),
    [
        (None, None, 50, (50, 500)),
        (None, None, 0, (0, 0)),
        (5, None, 50, (5, 50)),
        (None, 7, 50, (50, 7)),
        (0, None, 50, (0, 0)),
        (0, 3, 50, (0, 3)),
        (5, 0, 50, (5, 0)),
    ],
)
def test_intervals_left_open_follow_the_trainer(
    scalars: int | None, histograms: int | None, trainer: int, expected: tuple[int, int]
) -> None:
    """Scalars follow the trainer, histograms every tenth log of scalars, and zero is never."""
    schedule = settings(scalars, histograms).schedule(trainer)
    assert (schedule.scalars, schedule.histograms) == expected


def test_what_is_due() -> None:
    """Logs come in phase with Lightning's own: at the last step of each interval, counted from 0."""
    schedule = LoggingIntervals(scalars=5, histograms=10)
    assert [step for step in range(20) if schedule.scalars_due(step, alert=False)] == [4, 9, 14, 19]
    assert [step for step in range(20) if schedule.histograms_due(step, alert=False)] == [9, 19]


def test_what_is_due_in_an_alert() -> None:
    """While people are alert everything is due at every step, but for what they never want."""
    assert all(LoggingIntervals(5, 10).scalars_due(step, alert=True) for step in range(20))
    assert all(LoggingIntervals(5, 10).histograms_due(step, alert=True) for step in range(20))
    assert not any(LoggingIntervals(0, 10).scalars_due(step, alert=True) for step in range(20))
    assert not any(LoggingIntervals(5, 0).histograms_due(step, alert=True) for step in range(20))
