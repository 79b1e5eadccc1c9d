"""What the terminal says."""

from __future__ import annotations

import logging
import math

import pytest

from lightning_gradexplode.publish.console import tell
from lightning_gradexplode.records import Severity
from tests.publish.steps import finding


@pytest.mark.parametrize(
    ("severity", "level"),
    [(Severity.INFO, logging.INFO), (Severity.WARNING, logging.WARNING), (Severity.CRITICAL, logging.ERROR)],
)
def test_a_finding_is_told_in_two_lines(severity: Severity, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """One message at the level of its severity: what, where, when, value and limit, and then what to do."""
    caplog.set_level(logging.INFO, logger="lightning_gradexplode")
    tell(finding(severity), "clip the gradients")
    (told,) = caplog.records
    assert (told.name, told.levelno) == ("lightning_gradexplode", level)
    what, advice = told.getMessage().splitlines()
    for word in (severity.name, "gradient-growth", "layer.weight", "41", "123.25", "20.5"):
        assert word in what
    assert "clip the gradients" in advice


@pytest.mark.parametrize("limit", [math.inf, math.nan, 0.0])
def test_a_limit_that_says_nothing_is_left_out(limit: float, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of zero or infinity is not told, nor is a place where there is none."""
    tell(finding(where=None, limit=limit), "look")
    what = caplog.records[0].getMessage().splitlines()[0]
    assert "limit" not in what
    assert "None" not in what


def test_messages_with_percent_signs(caplog: pytest.LogCaptureFixture) -> None:
    """Names and messages are not taken for formats."""
    tell(finding(where="layer%s.weight"), "at 100 % of %d")
    assert "layer%s.weight" in caplog.text
    assert "100 % of %d" in caplog.text
