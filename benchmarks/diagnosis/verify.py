"""The cases as they stand and when cured: each fails, then trains well, and then has no cause to be named."""

from __future__ import annotations

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.runs import prepare, train
from lightning_gradexplode import GradientExplosionMonitor


def fault_of(case: type[Case]) -> str | None:
    """Return what is wrong with a case, None if it holds what it says."""
    failing = train(prepare(case, {}))
    if case.healthy:
        return f"{case.__name__} is not healthy: score {failing.score:.3g}" if failing.failed(case) else None
    if not failing.failed(case):
        return f"{case.__name__} does not fail: score {failing.score:.3g}, {case.good:g} is good"
    cured = train(prepare(case, dict(case.cure)))
    if cured.failed(case):
        return f"{case.__name__} does not train when cured: score {cured.score:.3g}, {case.good:g} is good"
    return None


def named_when_cured(case: type[Case]) -> str:
    """Return the first cause, with its confidence, that is named in a cured run; empty without a diagnosis."""
    monitor = GradientExplosionMonitor(report=False)
    train(prepare(case, dict(case.cure)), [monitor])
    diagnosis = monitor.diagnosis()
    return "" if diagnosis is None else f"{diagnosis.causes[0].kind} {diagnosis.causes[0].confidence:g}"
