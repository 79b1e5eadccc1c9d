"""The rows of the heat map: parameters in execution order, adjacent ones combined if there are too many."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import Diagnosis, Evidence, FloatArray, History, ReportContent
from lightning_gradexplode.records.summary import headline

MAX_ROWS = 120
"""Largest number of rows on a page."""

DECADES = 8.0
"""Largest number of decades that the colors of the heat map span."""

_MIN_LETTERS_OF_PART = 5
"""Number of letters that a part of a name keeps in its label."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a heat map, in the order in which the network is executed.

    Args:
        names: Name of each row: of a parameter, or the common part of several names.
        norms: L2 norm of the gradients of each row at each step, shape ``(rows, steps)``.
        marked: The row in which the incident began, None if it is unknown or not a row.
        is_executed: Whether the order is that of execution; otherwise it is that of registration.
    """

    names: tuple[str, ...]
    norms: FloatArray
    marked: int | None
    is_executed: bool

    def labeled(self, every: int) -> list[int]:
        """Return the rows whose names are drawn: one of `every` rows, and the marked one without its neighbors."""
        kept = [
            row for row in range(0, len(self.names), every) if self.marked is None or abs(row - self.marked) >= every
        ]
        return kept if self.marked is None else sorted([*kept, self.marked])


def places_at_fault(diagnosis: Diagnosis | None, evidence: Evidence) -> tuple[str, ...]:
    """Return names of parameters or modules in which an incident may have begun, the most certain first.

    Args:
        diagnosis: Its diagnosis, whose place comes first.
        evidence: Its evidence, with the module of the operation that failed in the replay, and the findings.
    """
    if diagnosis is None:
        return ()
    first = evidence.replay.first if evidence.replay is not None else None
    finding = headline(evidence.findings)
    places = (diagnosis.where, first.module if first else None, finding.where if finding else None)
    return tuple(dict.fromkeys(place for place in places if place))


def content_rows(history: History, content: ReportContent, max_rows: int = MAX_ROWS) -> Rows:
    """Return the rows of the heat map of one optimizer of a report."""
    places = places_at_fault(content.diagnosis, content.evidence)
    where = next((place for place in places if find_place(history.parameters, place) is not None), None)
    return rows(history, content.evidence, where, max_rows)


def rows(history: History, evidence: Evidence, where: str | None, max_rows: int = MAX_ROWS) -> Rows:
    """Return the rows of a history's heat map.

    If there are too many, the parameters of each module share a row, and if these are too many, adjacent modules. The
    parameter in which the incident began keeps its own row.

    Args:
        history: The last steps of one optimizer.
        evidence: Facts of the run and the replay, for the order of execution.
        where: The parameter or module in which the incident began.
        max_rows: Largest number of rows.
    """
    order, is_executed = _order(history.parameters, evidence)
    names = [history.parameters[place] for place in order]
    marked = find_place(names, where)
    bins = _bins(names, marked, max_rows)
    squares = np.square(history.parameter_grad_norm[:, order].T.astype(np.float64))
    norms = (
        np.sqrt(np.add.reduceat(squares, [first for first, _ in bins])) if bins else np.zeros((0, len(history.step)))
    )
    row = next((row for row, (first, last) in enumerate(bins) if marked is not None and first <= marked < last), None)
    return Rows(tuple(_name(names[first:last]) for first, last in bins), norms, row, is_executed)


def find_place(names: Sequence[str], where: str | None) -> int | None:
    """Return the index of the parameter of that name, or of the first one in the module of that name."""
    if where is None:
        return None
    exact = (index for index, name in enumerate(names) if name == where)
    inside = (index for index, name in enumerate(names) if name.startswith(f"{where}."))
    return next(exact, next(inside, None))


def _order(parameters: Sequence[str], evidence: Evidence) -> tuple[list[int], bool]:
    executed = evidence.replay.execution_order if evidence.replay is not None else ()
    if not executed and evidence.run.order_is_executed:
        executed = tuple(module.name for module in evidence.run.modules)
    owners = {parameter.name: parameter.module for parameter in evidence.run.parameters}
    rank = {module: index for index, module in enumerate(executed)}
    ranks = [_rank(owners.get(name, name.rpartition(".")[0]), rank) for name in parameters]
    known = sum(one is not None for one in ranks)
    if known < max(len(parameters) // 2, 1):
        return list(range(len(parameters))), False
    # A parameter whose module was not executed follows the one that is registered before it.
    filled: list[int] = []
    for one in ranks:
        filled.append(one if one is not None else filled[-1] if filled else 0)
    return sorted(range(len(parameters)), key=filled.__getitem__), True


def _rank(module: str, rank: Mapping[str, int]) -> int | None:
    """Return the index of a module in the order of execution, or of the innermost module that contains it."""
    while module not in rank and module:
        module = module.rpartition(".")[0]
    return rank.get(module)


def _bins(names: Sequence[str], marked: int | None, max_rows: int) -> list[tuple[int, int]]:
    """Return the first and the last index (exclusive) of each row."""
    if len(names) <= max_rows:
        return [(index, index + 1) for index in range(len(names))]
    owners = [name.rpartition(".")[0] for name in names]
    starts = [index for index in range(len(names)) if index == 0 or owners[index] != owners[index - 1]]
    most = max_rows - (2 if marked is not None else 0)
    if len(starts) > most:
        starts = [starts[place] for place in np.unique(np.linspace(0, len(starts) - 1, most).astype(int))]
    if marked is not None:
        starts = sorted({*starts, marked, marked + 1} - {len(names)})
    return list(zip(starts, [*starts[1:], len(names)], strict=True))


def _name(names: Sequence[str]) -> str:
    """Return the name of a row of several parameters: their common prefix, or the first and the last part."""
    if len(names) == 1:
        return names[0]
    first, last = names[0].split("."), names[-1].split(".")
    depth = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    is_one_module = depth == len(first) - 1
    span = [".".join(first[:depth])] if is_one_module else [".".join(first[: depth + 1]), last[depth]]
    return f"{' to '.join(span)} ({len(names)} parameters)"


def label(name: str, letters: int) -> str:
    """Return the label of a row: its name without the count; if it is too long, its longest parts are abbreviated.

    Numbers of layers stay readable. If that is not enough, only the end of the name remains.
    """
    name = name.partition(" (")[0]
    parts = name.split(".")
    most = max(map(len, parts))
    while len(shown := ".".join(_abbreviated(part, most) for part in parts)) > letters and most > _MIN_LETTERS_OF_PART:
        most -= 1
    return shown if len(shown) <= letters else f"\u2026{name[1 - letters :].lstrip('.')}"


def _abbreviated(part: str, letters: int) -> str:
    """Return a part of a name with at most some letters, those at its beginning and at its end."""
    end = letters // 2
    return part if len(part) <= letters else f"{part[: letters - 1 - end]}\u2026{part[-end:]}"


def positive_logs(values: npt.NDArray[np.floating]) -> FloatArray:
    """Return decimal logarithms; NaN for values that are not finite and positive."""
    usable = np.isfinite(values) & (values > 0)
    logs: FloatArray = np.log10(values, out=np.full(values.shape, np.nan), where=usable)
    return logs


def color_range(logs: FloatArray) -> tuple[float, float]:
    """Return the ends of the color scale as decimal logarithms: the 2 % quantile, and at most `DECADES` more."""
    usable = logs[np.isfinite(logs)]
    low, high = np.quantile(usable, (0.02, 1.0)).tolist() if len(usable) else (-1.0, 0.0)
    low = float(np.floor(low * 2) / 2)
    return low, float(min(max(high, low + 1.0), low + DECADES))
