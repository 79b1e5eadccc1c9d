"""Train every task with every fault, and print what the diagnosis names: ``python -m benchmarks.planted``.

With ``--strengths``, faults at several strengths and learning rates from usual ones to far too high ones, each in one
of the two loops, in turn.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

from rich.console import Console
from rich.table import Table

from benchmarks.planted.faults import FAULTS, Fault
from benchmarks.planted.runs import Loop, Trained, train
from benchmarks.planted.strengths import STRENGTHS
from benchmarks.planted.tasks import TASKS, Task
from lightning_gradexplode import Severity

LOOPS: tuple[Loop, ...] = ("lightning", "plain")


def result_of(trained: Trained, fault: Fault | None) -> str:
    """Return how a run counts: of a failed one by its first cause, of a healthy one by its findings."""
    if fault is None:
        found = any(one.severity >= Severity.WARNING for one in trained.monitor.findings)
        return "healthy, found" if found or trained.monitor.diagnosis() is not None else "healthy"
    if not trained.has_failed:
        return "trains"
    diagnosis = trained.monitor.diagnosis()
    if diagnosis is None:
        return "none"
    first = diagnosis.causes[0].kind
    return "right" if first in fault.kinds else "unknown" if first == "unknown" else "wrong"


def line_of(trained: Trained, task: type[Task], fault: Fault | None, loop: str) -> str:
    """Return a line about a run that the diagnosis is not right about."""
    diagnosis = trained.monitor.diagnosis()
    causes = () if diagnosis is None else diagnosis.causes
    named = "; ".join(f"{one.kind} {one.confidence:.2f} ({one.where})" for one in causes) or "no diagnosis"
    return f"{result_of(trained, fault)}: {task.__name__}, {loop}, {fault.name if fault else 'no fault'}: {named}"


def main() -> None:
    """Train all, print those that are not right, and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=[one.__name__ for one in TASKS], help="only this one")
    parser.add_argument("--loop", choices=LOOPS, help="only this one")
    parser.add_argument("--strengths", action="store_true", help="faults at several strengths")
    chosen = parser.parse_args()
    console = Console(width=160)
    counts: dict[str, Counter[str]] = {}
    for task in TASKS:
        if chosen.task in (None, task.__name__):
            counter = counts[task.__name__] = Counter[str]()
            for loop, fault in _strengths(task) if chosen.strengths else _faults(task):
                if chosen.loop not in (None, loop):
                    continue
                trained = train(task, fault, loop)
                result = result_of(trained, fault)
                counter[result] += 1
                if result not in ("right", "trains", "healthy"):
                    console.print(line_of(trained, task, fault, loop), markup=False, soft_wrap=True)
    console.print(_table(counts))


def _faults(task: type[Task]) -> Iterator[tuple[Loop, Fault | None]]:
    for loop in LOOPS:
        for fault in (None, *(one for one in FAULTS if one.suits(task))):
            yield loop, fault


def _strengths(task: type[Task]) -> Iterator[tuple[Loop, Fault | None]]:
    return zip(cycle(LOOPS), (one for one in STRENGTHS if one.suits(task)), strict=False)


def _table(counts: dict[str, Counter[str]]) -> Table:
    results = ("right", "wrong", "unknown", "none", "trains", "healthy", "healthy, found")
    table = Table("task", *results)
    for name, counter in {**counts, "all": sum(counts.values(), Counter())}.items():
        table.add_row(name, *(str(counter[one]) for one in results))
    return table


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning_gradexplode").setLevel(logging.CRITICAL)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main()
