"""When an incident begins, goes on and ends."""

from __future__ import annotations

import pytest

from lightning_gradexplode.engine.incidents import IncidentTracker
from lightning_gradexplode.records import Finding, Severity
from tests.detect.steps import through_checkpoint


def find(step: int, sign: str = "sign", severity: Severity = Severity.WARNING) -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, None, 1.0, 0.0, "message")


@pytest.mark.parametrize(
    ("findings", "new"),
    [
        ([find(step) for step in range(50)], [0]),
        ([find(0), find(20), find(40)], [0]),
        ([find(0), find(21), find(22)], [0, 21]),
        ([find(0), find(1, severity=Severity.CRITICAL), find(2, severity=Severity.CRITICAL)], [0, 1]),
        ([find(0, severity=Severity.CRITICAL), find(1), find(2, severity=Severity.CRITICAL)], [0]),
        ([find(0), find(0, sign="other"), find(1), find(1, sign="other")], [0, 0]),
        ([find(0, severity=Severity.CRITICAL), find(30), find(31, severity=Severity.CRITICAL)], [0, 30, 31]),
        ([find(0), find(15, sign="other"), find(30)], [0, 15]),
        (
            [find(0, severity=Severity.INFO), find(10, severity=Severity.INFO), find(31, severity=Severity.INFO)],
            [0, 31],
        ),
    ],
    ids=["lasting", "on and off", "calm", "worse", "milder", "another sign", "next incident", "kept open", "info"],
)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_sign_is_new_once_an_incident(findings: list[Finding], new: list[int], cut: int) -> None:
    """A sign is new when it begins, gets worse or comes back in another incident, also over a checkpoint."""
    tracker = IncidentTracker(calm_steps=20)
    steps = [finding.step for one in findings[:cut] for finding in tracker.add([one])]
    resumed = IncidentTracker(calm_steps=20)
    resumed.load_state_dict(through_checkpoint(tracker.state_dict()))
    steps += [finding.step for one in findings[cut:] for finding in resumed.add([one])]
    assert steps == new


def test_an_incident_ends_once_after_calm_steps() -> None:
    """Its end is seen at the first step behind the calm ones, and when a later finding begins the next incident."""
    tracker = IncidentTracker(calm_steps=20)
    tracker.add([find(5, severity=Severity.CRITICAL)])
    assert tracker.is_critical
    assert [step for step in range(6, 40) if tracker.ends(step)] == [26]
    assert tracker.began is None
    assert not tracker.is_critical
    tracker.add([find(40)])
    tracker.add([find(90)])
    assert tracker.began == 90
    assert tracker.ends(90)
    assert not tracker.ends(90)


def test_info_belongs_to_no_incident() -> None:
    """A finding that is only worth knowing begins no incident."""
    tracker = IncidentTracker()
    tracker.add([find(0, severity=Severity.INFO)])
    assert tracker.began is None
