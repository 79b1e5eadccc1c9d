"""When people are told of what lasts."""

from __future__ import annotations

import pytest

from lightning_gradexplode.detect.detector_set import Episodes
from lightning_gradexplode.records import Finding, Severity
from tests.detect.steps import through_checkpoint


def find(step: int, sign: str = "sign", severity: Severity = Severity.WARNING) -> Finding:
    """Build a finding."""
    return Finding(step, sign, severity, None, 1.0, 0.0, "message")


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        ([find(step) for step in range(50)], [0]),
        ([find(0), find(20), find(40)], [0]),
        ([find(0), find(21), find(22)], [0, 21]),
        ([find(0), find(1, severity=Severity.CRITICAL), find(2, severity=Severity.CRITICAL)], [0, 1]),
        ([find(0, severity=Severity.CRITICAL), find(1), find(2, severity=Severity.CRITICAL)], [0]),
        ([find(0), find(0, sign="other"), find(1), find(1, sign="other")], [0, 0]),
        ([find(0, severity=Severity.CRITICAL), find(30), find(31, severity=Severity.CRITICAL)], [0, 30, 31]),
    ],
    ids=["lasting", "on and off", "after a calm while", "worse", "milder", "another sign", "worse in a new episode"],
)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_people_are_told_once_an_episode(findings: list[Finding], told: list[int], cut: int) -> None:
    """A sign is told when it begins, gets worse or comes back after calm, also over a checkpoint."""
    episodes = Episodes(calm=20)
    news = [finding.step for one in findings[:cut] for finding in episodes.news([one])]
    resumed = Episodes(calm=20)
    resumed.load_state_dict(through_checkpoint(episodes.state_dict()))
    news += [finding.step for one in findings[cut:] for finding in resumed.news([one])]
    assert news == told
