"""All loggers of a run: what is measured goes to each, and one that fails costs only its own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.console import say
from lightning_gradexplode.loggers.registry import publisher_for
from lightning_gradexplode.loggers.scalars import PREFIX, per_parameter, totals
from lightning_gradexplode.measure.parameter_names import by_module
from lightning_gradexplode.records import Finding, Histogram, Report, StepRecord

PATIENCE = 3
"""A logger that fails so often in a row at the same kind of write is left alone."""


MOST_HISTOGRAMS = 512
"""Of so many parameters each has its own histograms; of more, those of a module are added up."""


def merged(histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Add up the histograms of a module where there are too many to look at; their buckets are the same ones."""
    if len(histograms) <= MOST_HISTOGRAMS:
        return dict(histograms)
    every = list(histograms.values())
    groups = by_module(list(histograms), MOST_HISTOGRAMS)
    return {name: Histogram.merged(every[place] for place in places) for name, places in groups.items()}


class LoggerCollection:
    """Publishes to all loggers of a trainer; on the main process only.

    Args:
        loggers: Lightning loggers.
        several_optimizers: Whether the run has more than one.
    """

    def __init__(self, loggers: Sequence[Any], several_optimizers: bool = False) -> None:
        self._several_optimizers = several_optimizers
        self._loggers = list(loggers)
        self._publishers: list[LoggerAdapter] | None = None
        self._told: set[str] = set()
        self._failures: dict[tuple[int, str], int] = {}

    def record(self, record: StepRecord, shown: Sequence[bool], every_parameter: bool) -> None:
        """Write a record's scalars, those of each shown parameter if asked for, and its histograms."""
        values = totals(record, self._several_optimizers)
        if every_parameter:
            values |= per_parameter(record, shown)
        self._each("scalars", lambda publisher: publisher.scalars(values, record.step))
        if record.histograms:
            self._histograms(record)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Tell each logger of a finding, and what to do about it."""
        self._each("finding", lambda publisher: publisher.finding(finding, advice))

    def report(self, report: Report) -> None:
        """Show each logger a report that was written."""
        self._each("report", lambda publisher: publisher.report(report))

    def _histograms(self, record: StepRecord) -> None:
        named: Mapping[str, Histogram] = {
            f"{PREFIX}/{quantity}/{parameter}": histogram
            for quantity, histograms in record.histograms.items()
            for parameter, histogram in merged(histograms).items()
        }

        def write(publisher: LoggerAdapter) -> None:
            if publisher.takes_histograms:
                publisher.histograms(named, record.step)
            else:
                kind = type(publisher.logger).__name__
                self._tell_once(f"{kind} takes no histograms; it gets the scalars only")

        self._each("histograms", write)

    def _each(self, kind: str, write: Callable[[LoggerAdapter], None]) -> None:
        if self._publishers is None:
            # A logger's experiment is opened at the first write, and not sooner than the user would have it.
            self._publishers = []
            for one in self._loggers:
                with self._failing_alone(one):
                    publisher = publisher_for(one)
                    self._publishers.append(publisher)
                    publisher.started()
        for publisher in [*self._publishers]:
            failures = self._failures.get((id(publisher), kind), 0)
            self._failures[id(publisher), kind] = failures + 1
            with self._failing_alone(publisher.logger):
                write(publisher)
                self._failures[id(publisher), kind] = 0
            if self._failures[id(publisher), kind] >= PATIENCE:
                self._publishers.remove(publisher)
                name = type(publisher.logger).__name__
                self._tell_once(f"{name} has failed {PATIENCE} times in a row, and is left alone from here on")

    @contextmanager
    def _failing_alone(self, one: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kind = f"{type(one).__name__} failed, its data are lost: {type(error).__name__}"
            self._tell_once(kind, f": {error}")  # the error's text may be another one each time

    def _tell_once(self, message: str, details: str = "") -> None:
        if message not in self._told:
            self._told.add(message)
            say(logging.WARNING, f"gradexplode: {message}{details}")
