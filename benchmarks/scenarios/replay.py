"""Replay of a recorded run for detectors, as the monitor calls them during the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from benchmarks.scenarios.recording import RecordedRun, RecordedStep
from lightning_gradexplode import Detector, Finding, Severity, StepRecord
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.engine.incidents import IncidentTracker
from lightning_gradexplode.engine.schedule import LoggingSchedule

DETAILS = ("grad_max", "share_above_one")
"""Quantities of `StepRecord.per_parameter` that are measured only where scalars are due."""


def replay(
    run: RecordedRun, detectors: Callable[[], Sequence[Detector]], weights_every: int = 50
) -> list[tuple[int, list[Finding]]]:
    """Return the findings of detectors in a recorded run.

    Args:
        run: The run.
        detectors: Builds the detectors.
        weights_every: Number of steps between two measurements of details and of the change of the weights, as the
            monitor's ``log_every_n_steps``. They are also measured at each of ten steps after a warning; error
            gradients of modules at every tenth of these steps, at the first step and after a warning.

    Returns:
        Step and findings of each optimizer step, oldest first.
    """
    schedule = LoggingSchedule(weights_every, 10 * weights_every)
    incidents = IncidentTracker()
    sets: dict[int, DetectorSet] = {}
    replayed: list[tuple[int, list[Finding]]] = []
    stepped = False
    for number, together in groupby(run.steps, key=lambda step: step.before.step):
        begun = []
        nodes_due = schedule.due(number)[1] or (schedule.has_histograms and not stepped)
        for step in together:
            record = step.before if nodes_due else replace(step.before, module_gradients=None)
            if record.optimizer not in sets:
                sets[record.optimizer] = DetectorSet(detectors())
            detector_set = sets[record.optimizer]
            due, _ = schedule.due(number)
            found = detector_set.check_before_update(record if due else _without(record, DETAILS))
            if _alarming(incidents.add(found)):
                schedule.alert(number, ())
                due, _ = schedule.due(number)
            begun.append((detector_set, replace(step, before=record), due, found))
            stepped = stepped or step.after is not None
        for (
            detector_set,
            step,
            due,
            found,
        ) in begun:  # once all optimizers of the batch have stepped
            later = detector_set.check_after_update(_after(step, due, detector_set.needs_weights))
            if _alarming(incidents.add(later)):
                schedule.alert(number, ())
            replayed.append((number, found + later))
    return replayed


def complete(run: RecordedRun) -> Iterator[StepRecord]:
    """Return all records of a run with all that was measured in them."""
    for step in run.steps:
        yield step.after or step.before


def _after(step: RecordedStep, due: bool, weights: bool) -> StepRecord:
    """Return a record as it is after the step, with no more than was measured then."""
    if step.after is None:
        return step.before
    if due:
        return replace(step.after, module_gradients=step.before.module_gradients)
    if not weights:
        return replace(_without(step.before, DETAILS), loss=step.after.loss)
    measured = {"weight_norm": step.after.per_parameter["weight_norm"]}
    return replace(
        _without(step.before, DETAILS),
        loss=step.after.loss,
        weight_norm=step.after.weight_norm,
        nonfinite_weights=step.after.nonfinite_weights,
        per_parameter={**_without(step.before, DETAILS).per_parameter, **measured},
    )


def _without(record: StepRecord, quantities: Sequence[str]) -> StepRecord:
    kept = {name: values for name, values in record.per_parameter.items() if name not in quantities}
    return replace(record, per_parameter=kept)


def _alarming(findings: Sequence[Finding]) -> bool:
    return any(finding.severity >= Severity.WARNING for finding in findings)
