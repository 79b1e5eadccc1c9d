"""Print how many causes are named and how many runs are saved: ``python -m benchmarks.diagnosis``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar, get_args

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.grading import Grade, confidence_table, run_case, table
from benchmarks.diagnosis.halves import NOT_BY_CASE, Half, cases
from benchmarks.diagnosis.verify import fault_of, named_when_cured

Item = TypeVar("Item")


def for_each(function: Callable[[type[Case]], Item], chosen: Sequence[type[Case]], jobs: int) -> Iterator[Item]:
    """Apply a function to cases, in parallel with more than one job, and yield its results in their order."""
    if jobs == 1:
        yield from map(function, chosen)
        return
    with ProcessPoolExecutor(jobs, initializer=logging.disable, initargs=(logging.CRITICAL,)) as pool:
        yield from pool.map(function, chosen)


def with_progress(items: Iterable[Item], total: int, title: str) -> list[Item]:
    """Return all items, with a progress bar if rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return list(items)
    return list(track(items, title, total, console=Console(stderr=True), transient=True))


def case_lines(grades: Iterable[Grade]) -> list[str]:
    """Return a line for each case with its grade and its diagnosis."""
    lines = []
    for one in grades:
        marks: list[str] = [one.first]
        marks += [] if one.place is None else ["place" if one.place else "no place"]
        marks += [] if one.rows is None else ["rows" if one.rows else "no rows"]
        marks += [] if one.saved is None else ["saved" if one.saved else "lost" if one.applied else "not applied"]
        lines.append(f"{one.kind:22} {one.case:26} {', '.join(marks):38} {one.said}")
    return lines


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def main(arguments: Sequence[str]) -> None:
    """Train the chosen halves and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", nargs="+", choices=[*get_args(Half), "both"], default=["both"])
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--cases", nargs="*", help="also print a line for each case, or for these; not of sets that are only counted"
    )
    parser.add_argument(
        "--log-every-n-steps",
        type=int,
        default=1,
        help="interval of the diagnosed runs' logs; Lightning's default is 50",
    )
    parser.add_argument(
        "--late", action="store_true", help="read the numbers of a step after its update, as on an accelerator"
    )
    parser.add_argument("--verify", action="store_true", help="only check that each case fails, and trains when cured")
    parser.add_argument("--cured", action="store_true", help="only count what is named in the cured runs")
    parser.add_argument("--confidence", action="store_true", help="also print how many are right by confidence")
    options = parser.parse_args(arguments)
    graded = partial(run_case, log_every_n_steps=options.log_every_n_steps, reads_late=options.late)
    named = partial(named_when_cured, log_every_n_steps=options.log_every_n_steps)
    halves: list[Half] = ["tuning", "held_out"] if "both" in options.half else options.half
    every: list[Grade] = []
    for half in halves:
        names = options.cases if half not in NOT_BY_CASE else None
        chosen = [case for case in cases(half) if not names or case.__name__ in names]
        if options.verify:
            faults = with_progress(for_each(fault_of, chosen, options.jobs), len(chosen), half)
            print("\n".join(filter(None, faults)) or f"all {len(chosen)} cases of {half} hold")
            continue
        if options.cured:
            kinds = with_progress(for_each(named, chosen, options.jobs), len(chosen), half)
            for one, count in Counter(kinds).most_common():
                print(f"{half}, cured: {count} of {len(kinds)} {one or 'without a diagnosis'}")
            continue
        grades = with_progress(for_each(graded, chosen, options.jobs), len(chosen), half)
        if half not in NOT_BY_CASE and options.cases is not None:
            print("\n".join(case_lines(grades)))
        print(f"\n{half}\n")
        print_table(table(grades))
        every += grades
    if options.confidence and every:
        print("\nall of these sets\n")
        print_table(confidence_table(every))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main(sys.argv[1:])
