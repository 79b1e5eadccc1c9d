"""Which steps are logged."""

from __future__ import annotations

import pytest

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.schedule import ALERT_STEPS, LoggingSchedule


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
    arguments = Arguments.checked(log_every_n_steps=scalars, histogram_every_n_steps=histograms)
    assert arguments.intervals(trainer) == expected


def test_logs_are_due_at_the_last_step_of_each_interval() -> None:
    """Logs come in phase with Lightning's own, steps being counted from 0."""
    schedule = LoggingSchedule(scalars=5, histograms=10)
    assert [step for step in range(20) if schedule.due(step)[0]] == [4, 9, 14, 19]
    assert [step for step in range(20) if schedule.due(step)[1]] == [9, 19]


def test_after_a_finding_everything_is_due_for_a_while() -> None:
    """Every step is logged for some steps, but for what is never logged."""
    alerted = range(7, 7 + ALERT_STEPS + 1)
    for scalars, histograms in ((5, 10), (0, 10), (5, 0)):
        schedule = LoggingSchedule(scalars, histograms)
        schedule.alert(7, ["a sign"])
        assert all(schedule.due(step) == (scalars > 0, histograms > 0) for step in alerted)
        assert not schedule.due(alerted[-1] + 1)[0]


def test_of_many_findings_a_few_are_logged() -> None:
    """The steps after the first three findings of a kind are logged, and those after the 10th and the 100th."""
    schedule = LoggingSchedule(scalars=50, histograms=50)
    logged = []
    for number in range(1, 200):
        step = 100 * number
        schedule.alert(step, ["a sign"])
        assert schedule.due(step)[0]
        if schedule.logs_scalars(step):
            logged.append(number)
        assert schedule.logs_histograms(step) == schedule.logs_scalars(step)
        assert schedule.logs_scalars(step + 49)
    assert logged == [1, 2, 3, 10, 100]


def test_a_schedule_without_histograms_has_none_due() -> None:
    """Then the error gradients of modules are not measured either, not even at the first step."""
    assert LoggingSchedule(scalars=5, histograms=10).has_histograms
    assert not LoggingSchedule(scalars=5, histograms=0).has_histograms


@pytest.mark.parametrize(("scalars", "histograms"), [(0, 10), (5, 0), (0, 0)])
def test_what_is_never_logged_is_not_logged_after_many_findings_either(scalars: int, histograms: int) -> None:
    """Findings of one kind at each of many steps make an interval of zero no error and no log."""
    schedule = LoggingSchedule(scalars, histograms)
    logged = []
    for step in range(40):
        schedule.alert(step, ["a sign"])
        logged.append((schedule.logs_scalars(step), schedule.logs_histograms(step)))
    assert any(one for one, _ in logged)
    assert logged[25] == (False, False)


def test_a_resumed_run_logs_the_steps_after_a_finding() -> None:
    """As an uninterrupted one does; a checkpoint of an earlier version has no such step."""
    saved = LoggingSchedule(scalars=50, histograms=50)
    saved.alert(7, ["a sign"])
    resumed = LoggingSchedule(scalars=50, histograms=50)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.due(9)[0]
    assert resumed.logs_scalars(9)
    resumed.load_state_dict({"alert_until": 17})
    assert not resumed.logs_scalars(9)
