"""Rules that raise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_gradexplode.diagnose.guarded_rules import causes_by
from lightning_gradexplode.records import Cause, Evidence
from tests.diagnose.evidence import failed

CAUSE = Cause("learning-rate", None, (), 0.5, ())


def one(evidence: Evidence) -> Cause:
    """Find one cause."""
    return CAUSE


def nothing(evidence: Evidence) -> None:
    """Find none."""


def several(evidence: Evidence) -> Iterator[Cause]:
    """Find two causes."""
    yield CAUSE
    yield CAUSE


@pytest.mark.parametrize(("rule", "count"), [(one, 1), (nothing, 0), (several, 2)])
def test_a_rule_finds_one_cause_or_none_or_several(rule: object, count: int) -> None:
    """Whatever the form of its result, the causes come back in a list."""
    assert causes_by("rule", rule, failed(3)) == [CAUSE] * count  # type: ignore[arg-type]


def test_a_rule_that_raises_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Also if it raises after it has found a cause; it has found none then."""

    def raises(evidence: Evidence) -> Iterator[Cause]:
        yield CAUSE
        raise ValueError("on purpose")

    assert causes_by("own-rule", raises, failed(3)) == []
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "`own-rule`" in record.getMessage()
    assert "on purpose" in record.getMessage()
