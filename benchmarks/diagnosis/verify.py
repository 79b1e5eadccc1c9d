"""Checks of the cases: each fails as it is and with the cures of other causes, and trains well with its cure."""

from __future__ import annotations

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.runs import prepare, train, train_monitored


def fault_of(case: type[Case]) -> str | None:
    """Return the defect of a case, None if it fails as it is and trains well with its cure."""
    failing = train(prepare(case, {}))
    if case.healthy:
        return f"{case.__name__} is not healthy: score {failing.score:.3g}" if failing.failed(case) else None
    if not failing.failed(case):
        return f"{case.__name__} does not fail: score {failing.score:.3g}, {case.good:g} is good"
    cured = train(prepare(case, dict(case.cure)))
    if cured.failed(case):
        return f"{case.__name__} does not train when cured: score {cured.score:.3g}, {case.good:g} is good"
    for changes in case.not_cured_by:
        other = train(prepare(case, dict(changes)))
        if not other.failed(case):
            return f"{case.__name__} trains with {dict(changes)}: score {other.score:.3g}, {case.good:g} is good"
    return None


def named_when_cured(case: type[Case], log_every_n_steps: int = 1) -> str:
    """Return the first cause, with its confidence, that is named in a cured run; empty without a diagnosis.

    Args:
        case: The case.
        log_every_n_steps: Interval at which the run is logged.
    """
    _, diagnosis = train_monitored(prepare(case, dict(case.cure)), log_every_n_steps=log_every_n_steps)
    return "" if diagnosis is None else f"{diagnosis.causes[0].kind} {diagnosis.causes[0].confidence:g}"
