"""Checking the cases themselves: each fails as it stands, and trains well when cured."""

from __future__ import annotations

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.runs import prepare, train


def fault_of(case: type[Case]) -> str | None:
    """Return what is wrong with a case, None if it holds what it says."""
    failing = train(prepare(case, {}))
    if not failing.failed(case):
        return f"{case.__name__} does not fail: score {failing.score:.3g}, {case.good:g} is good"
    cured = train(prepare(case, dict(case.cure)))
    if cured.failed(case):
        return f"{case.__name__} does not train when cured: score {cured.score:.3g}, {case.good:g} is good"
    return None
