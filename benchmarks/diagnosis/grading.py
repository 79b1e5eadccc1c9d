"""Comparing a diagnosis with what is true of a case, and counting over cases."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.diagnosis.case import Case, lines_at_fault
from benchmarks.diagnosis.remedies import treat, treatment_for
from benchmarks.diagnosis.runs import prepare, train_monitored
from lightning_gradexplode.records.diagnosis import MIN_CONFIDENCE, Diagnosis

Verdict = Literal["right", "wrong", "unknown", "none"]
"""Of the first cause; ``"none"`` where there is no diagnosis."""


@dataclass(frozen=True, slots=True)
class Grade:
    """How one diagnosis compares with the truth.

    Args:
        case: Name of the case.
        kind: Its kind, the first of those that are right.
        first: Of the first cause.
        among_three: Whether one of the first three causes is right.
        place: Whether the place is right, None where the case has none.
        rows: Whether the rows at fault are named, None where the case has none.
        saved: Whether the first remedy saves the run, None where nothing is to be saved.
        applied: Whether the first remedy could be applied mechanically.
        said: Kinds and places of the first three causes, and the first remedy.
        confidence: Of the first cause, 0 without a cause.
    """

    case: str
    kind: str
    first: Verdict
    among_three: bool
    place: bool | None
    rows: bool | None
    saved: bool | None
    applied: bool
    said: str
    confidence: float = 0.0


def run_case(case: type[Case], log_every_n_steps: int = 1, reads_late: bool = False) -> Grade:
    """Train a failing case under the monitor, and grade its diagnosis and its first remedy.

    Args:
        case: The case.
        log_every_n_steps: Interval at which the run is logged, and its updates are measured while it is calm.
        reads_late: Whether its numbers arrive after the update, as on an accelerator.
    """
    ending, diagnosis = train_monitored(prepare(case, {}), log_every_n_steps=log_every_n_steps, reads_late=reads_late)
    treatment = None
    if diagnosis and diagnosis.remedies:
        is_right = diagnosis.causes[0].kind in case.kinds
        treatment = treatment_for(case, diagnosis.remedies[0], is_right)
    saved = None if ending.is_good(case) else treatment is not None and treat(case, treatment).is_good(case)
    return grade(case, diagnosis, saved, treatment is not None)


def grade(case: type[Case], diagnosis: Diagnosis | None, saved: bool | None, applied: bool = True) -> Grade:
    """Compare a diagnosis with the truth.

    Args:
        case: The case.
        diagnosis: The diagnosis, if there is one.
        saved: Whether the first remedy saves the run, None where nothing is to be saved.
        applied: Whether the first remedy could be applied mechanically.
    """
    causes = diagnosis.causes[:3] if diagnosis else ()
    first: Verdict = "right" if "unknown" in case.kinds else "none"
    if causes:
        kind = causes[0].kind
        first = "right" if kind in case.kinds else "unknown" if kind == "unknown" else "wrong"
    where = ((causes[0].where if causes else None) or (diagnosis.where if diagnosis else None)) or ""
    evidence = " ".join([where, *(causes[0].evidence + causes[0].remedies if causes else ())])
    return Grade(
        case=case.__name__,
        kind=case.kinds[0],
        first=first,
        among_three=any(cause.kind in case.kinds for cause in causes) or (not causes and first == "right"),
        place=is_right_place(case, where) if case.places else None,
        rows=any(re.search(rf"(?<![\w.]){row}(?![\w.]*\d)", evidence) is not None for row in case.rows)
        if case.rows
        else None,
        saved=saved,
        applied=applied,
        said=_said(diagnosis),
        confidence=causes[0].confidence if causes else 0.0,
    )


def is_right_place(case: type[Case], where: str) -> bool:
    """Return whether a place names one of the case's places as a whole word, or a source line at fault."""
    names = (
        rf"{'' if place.startswith('[') else '(?<![a-z0-9])'}{re.escape(place.lower())}(?:backward\d*)?(?![a-z0-9_])"
        for place in case.places
    )
    lines = (re.escape(line) + r"(?!\d)" for line in lines_at_fault(case))
    return any(re.search(name, where.lower()) for name in (*names, *lines))


def _said(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return "no diagnosis"
    causes = (
        f"{cause.kind} {cause.confidence:.2f}" + (f" ({cause.where})" if cause.where else "")
        for cause in diagnosis.causes[:3]
    )
    return "; ".join(causes) + (f" -> {diagnosis.remedies[0]}" if diagnosis.remedies else "")


def totals(grades: Iterable[Grade]) -> list[str]:
    """Return the cells of one line of the table: counts, and of how many."""
    every = list(grades)
    places = [one.place for one in every if one.place is not None]
    rows = [one.rows for one in every if one.rows is not None]
    saved = [one.saved for one in every if one.saved is not None]
    counts = [sum(one.first == verdict for one in every) for verdict in ("right", "wrong", "unknown", "none")]
    among = sum(one.among_three for one in every)
    cells = [str(len(every)), str(counts[0]), str(among), *(str(count) for count in counts[1:])]
    return cells + [f"{sum(column)} of {len(column)}" for column in (places, rows, saved)]


CONFIDENCES = (0.9, 0.75, 0.6, MIN_CONFIDENCE)
"""Least confidence of each line of the table of confidences."""


def confidence_table(grades: Iterable[Grade]) -> list[list[str]]:
    """Return the heading, and for each range of confidence how many first causes are right, of how many."""
    named = [one for one in grades if one.first in ("right", "wrong") and one.confidence > 0]
    lines = [["confidence of the first cause", "right"]]
    for least, above in zip(CONFIDENCES, (math.inf, *CONFIDENCES), strict=False):
        verdicts = [one.first for one in named if least <= one.confidence < above]
        title = f"{least:g} and more" if above == math.inf else f"from {least:g} to below {above:g}"
        lines.append([title, f"{verdicts.count('right')} of {len(verdicts)}"])
    return lines


HEADINGS = ("cases", "right", "in three", "wrong", "unknown", "none", "place", "rows", "first remedy saves")


def table(grades: Sequence[Grade]) -> list[list[str]]:
    """Return the heading, a line for each kind, and one for all."""
    kinds = sorted({one.kind for one in grades})
    lines = [[kind, *totals(one for one in grades if one.kind == kind)] for kind in kinds]
    return [["kind", *HEADINGS], *lines, ["all", *totals(grades)]]
