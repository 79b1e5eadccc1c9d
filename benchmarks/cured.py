"""Findings in runs that train well: the failing runs of the diagnosis with their cure: ``python -m benchmarks.cured``.

The runs of all sets of `benchmarks.diagnosis` that are looked at are trained with the settings that cure them,
recorded, and evaluated by the monitor's detectors. Those that end well are healthy: every CRITICAL finding in them is
a false alarm, and warnings are to be rare. Half A is every second case of each set, from the first one; rules may be
changed for it. Half B is the others, which are only counted.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.diagnosis import case as base
from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.halves import NOT_BY_CASE, Half, cases
from benchmarks.diagnosis.runs import prepare, train_recorded
from benchmarks.scenarios import recording
from benchmarks.scenarios.probe import Outcome
from benchmarks.scenarios.recording import RecordedRun, cached, measuring_code
from benchmarks.scenarios.replay import replay
from lightning_gradexplode import Finding, Severity, default_detectors
from lightning_gradexplode.engine.incidents import IncidentTracker

SETS: tuple[Half, ...] = tuple(name for name in get_args(Half) if name not in NOT_BY_CASE)


@dataclass(frozen=True, slots=True)
class Told:
    """The findings of at least WARNING in one run.

    Args:
        name: Set and case.
        steps: Number of optimizer steps.
        reported: Findings that the monitor reports: those that are new to their incident, or make it worse.
        held: Number of steps with a finding.
    """

    name: str
    steps: int
    reported: tuple[Finding, ...]
    held: int

    @property
    def alarmed(self) -> bool:
        """Whether one of the findings is CRITICAL."""
        return any(finding.severity is Severity.CRITICAL for finding in self.reported)


def cured_run(case: type[Case], fresh: bool = False) -> RecordedRun:
    """Return the recorded run of a case with its cure; it is trained if it is not in the cache."""
    source = [Path(inspect.getfile(part)) for part in (recording, base, case)]
    return cached(f"cured-{case.__module__}-{case.__name__}", source, fresh, lambda: _train(case))


def _train(case: type[Case]) -> RecordedRun:
    ending, steps = train_recorded(prepare(case, dict(case.cure)))
    outcome = Outcome("grey" if ending.failed(case) else "healthy", None, f"score {ending.score:.3g}")
    return RecordedRun(case.__name__, case.seed, outcome, steps, measuring_code())


def told(name: str, run: RecordedRun, weights_every: int) -> Told:
    """Return what the monitor's detectors find in a run."""
    incidents = IncidentTracker()
    reported, held = [], 0
    for _, found in replay(run, default_detectors, weights_every):
        loud = [finding for finding in found if finding.severity >= Severity.WARNING]
        reported += incidents.add(loud)
        held += bool(loud)
    return Told(name, len(run.steps), tuple(reported), held)


def healthy(half: str, weights_every: int, fresh: bool = False) -> Iterator[Told]:
    """Evaluate the healthy runs of half A or B, one after another."""
    for name in SETS:
        for case in cases(name)["AB".index(half) :: 2]:
            run = cured_run(case, fresh)
            if run.outcome.label == "healthy":
                yield told(f"{name} {case.__name__}", run, weights_every)


def print_counts(title: str, runs: Sequence[Told]) -> None:
    """Print how many runs have an alarm or a warning, and how many findings there are."""
    steps = sum(one.steps for one in runs)
    reports, held = sum(len(one.reported) for one in runs), sum(one.held for one in runs)
    print(
        f"{title}: of {len(runs)} healthy runs {sum(one.alarmed for one in runs)} have a CRITICAL finding, "
        f"{sum(bool(one.reported) for one in runs)} one of at least WARNING; of these {reports} are reported, "
        f"{1000 * reports / max(steps, 1):.2f} per 1,000 steps, and {held} steps have one"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the runs that are not recorded yet, and print the findings of half A and the counts of both halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--weights-every", type=int, default=50, help="the monitor's log_every_n_steps")
    parser.add_argument("--fresh", action="store_true", help="train all runs again")
    options = parser.parse_args(arguments)
    halves = {half: list(healthy(half, options.weights_every, options.fresh)) for half in "AB"}
    for one in halves["A"]:
        for finding in one.reported:
            print(f"{one.name} {finding.step}: {finding.sign} {finding.severity.name}, {finding.message}")
    signs = Counter(sign for one in halves["A"] for sign in {finding.sign for finding in one.reported})
    print("".join(f"\n{count} runs of half A with {sign}" for sign, count in signs.most_common()))
    for half, runs in halves.items():
        print_counts(f"Half {half}", runs)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main(sys.argv[1:])
