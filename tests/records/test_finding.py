"""Findings and their severities."""

from __future__ import annotations

import math
import pickle

import pytest

from lightning_gradexplode.records import Finding, Severity


def test_severities_are_what_is_logged() -> None:
    """Alert rules of users rely on the numbers."""
    assert [int(severity) for severity in (Severity.INFO, Severity.WARNING, Severity.CRITICAL)] == [1, 2, 3]


@pytest.mark.parametrize("where", [None, "layer.weight"])
@pytest.mark.parametrize("severity", list(Severity))
def test_a_finding_can_be_converted_to_a_dictionary_and_back(severity: Severity, where: str | None) -> None:
    """A finding goes into plain values and comes back the same."""
    finding = Finding(3, "sign", severity, where, 1.5, math.inf, "message")
    plain = finding.as_dict()
    assert plain["severity"] == severity.name
    assert Finding.from_dict(plain) == finding
    assert pickle.loads(pickle.dumps(finding)) == finding


def test_a_finding_is_one_line_of_text() -> None:
    """Severity, step, sign, place, message and limit are in it, and nothing that a terminal would act on."""
    finding = Finding(41, "gradient-growth", Severity.WARNING, "a\x1b[31m\nb\udcff", 3.0, 20.5, "it grew")
    assert str(finding) == "WARNING at step 41: gradient-growth in a [31m b : it grew (limit 20.5)"
    without = Finding(0, "nonfinite-loss", Severity.CRITICAL, None, math.nan, math.inf, "the loss is NaN")
    assert str(without) == "CRITICAL at step 0: nonfinite-loss: the loss is NaN"
