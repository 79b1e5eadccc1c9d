"""The gradient histograms that a report compares."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import Histogram, StepRecord
from lightning_gradexplode.report.gradient_history import GradientHistory


def record_of(step: int, histogram: Histogram, severity: int = 0, optimizer: int = 0) -> StepRecord:
    """Return a step with the histogram of one parameter."""
    histograms = {"gradient": {f"net_{optimizer}.w": histogram}}
    return StepRecord(step, optimizer=optimizer, severity=severity, histograms=histograms)


def test_the_latest_step_with_a_finding_and_the_last_calm_one_before_it_are_kept() -> None:
    """Calm steps after it, and those without histograms, replace neither; the histograms are those that were added."""
    each = [measure_histogram(torch.full((8,), 2.0**step)) for step in range(8)]
    history = GradientHistory()
    for step, histogram in enumerate(each):
        history.add(record_of(step, histogram, severity=3 if 3 <= step < 6 else 1 if step == 2 else 0))
    history.add(StepRecord(9, severity=3))
    (calm, before), (latest, after) = history.of("net_0.w")
    assert (calm, latest) == (2, 5)
    assert (before.counts == each[2].counts).all()
    assert (after.counts == each[5].counts).all()


@pytest.mark.parametrize("lost", [0.0, math.nan])
def test_a_step_with_nothing_to_draw_replaces_none_of_its_incident(lost: float) -> None:
    """Gradients that have become zero or NaN show no distribution; in a new incident they are all that is known."""
    drawn, empty = (measure_histogram(torch.full((8,), value)) for value in (2.0, lost))
    history = GradientHistory()
    for step, (histogram, severity) in enumerate([(drawn, 0), (drawn, 2), (empty, 3), (empty, 3)]):
        history.add(record_of(step, histogram, severity))
    assert [step for step, _ in history.of("net_0.w")] == [0, 1]
    for step, (histogram, severity) in enumerate([(drawn, 0), (empty, 3)], start=4):
        history.add(record_of(step, histogram, severity))
    assert [step for step, _ in history.of("net_0.w")] == [4, 5]


def test_each_optimizer_has_its_own() -> None:
    """The steps of one do not replace those of another; an unknown parameter has none."""
    history = GradientHistory()
    for optimizer in (0, 1):
        history.add(record_of(optimizer, measure_histogram(torch.ones(8)), optimizer=optimizer))
    assert [step for step, _ in history.of("net_0.w")] == [0]
    assert [step for step, _ in history.of("net_1.w")] == [1]
    assert history.of("other") == ()
    assert history.of(None) == ()


def test_a_healthy_run_shows_its_latest_step() -> None:
    """There is only one to show."""
    history = GradientHistory()
    for step in range(3):
        history.add(record_of(step, measure_histogram(torch.ones(8))))
    assert [step for step, _ in history.of("net_0.w")] == [2]
    assert history.parameters == ["net_0.w"]


def test_a_parameter_of_few_elements_has_no_distribution() -> None:
    """The bias of a single output is not shown, not even if it is at fault."""
    history = GradientHistory()
    history.add(record_of(0, measure_histogram(torch.ones(1)), severity=3))
    assert history.parameters == []
    assert history.of("net_0.w") == ()
