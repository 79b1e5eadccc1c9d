"""All loggers of a run. If one fails, only its own data are lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.console import log
from lightning_gradexplode.loggers.notifications import Notifier
from lightning_gradexplode.loggers.registry import adapter_for
from lightning_gradexplode.loggers.scalars import PREFIX, parameter_scalars, total_scalars
from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report, Severity, StepRecord, combine
from lightning_gradexplode.records.repeats import Repeats
from lightning_gradexplode.records.summary import advice_of
from lightning_gradexplode.records.text import describe, printable

MAX_FAILURES = 3
"""Consecutive failures of the same kind of write after which a logger is no longer used."""

MAX_HISTOGRAMS = 512
"""Number of parameters up to which each has its own histograms; with more, there is one per module."""

SLOW_CALL = 5.0
"""Seconds above which a call of a logger is reported as slow."""


class LoggerCollection:
    """Writes to all loggers of a run; on the main process only.

    Args:
        loggers: Lightning loggers, or objects with ``log_metrics(metrics=, step=)`` and ``experiment``.
        several_optimizers: Whether the run has more than one optimizer, so that each one's totals are logged too.
        alert_level: Lowest severity for which loggers send alerts.
    """

    def __init__(
        self,
        loggers: Sequence[Any],
        several_optimizers: bool = False,
        alert_level: Severity = Severity.CRITICAL,
    ) -> None:
        self._loggers = list(loggers)
        self._several_optimizers = several_optimizers
        self._alert_level = alert_level
        self._adapters: list[LoggerAdapter] | None = None
        self._diagnosis: Diagnosis | None = None
        self._pending: tuple[Finding, str] | None = None
        self._repeats = Repeats()
        self._warned: set[str] = set()
        self._failures: dict[tuple[int, str], int] = {}

    def log_batch(
        self, records: Sequence[StepRecord], shown: Sequence[Sequence[bool]], per_parameter: bool = False
    ) -> None:
        """Log the scalars and histograms of all optimizers that stepped in a batch, once per name and step.

        Args:
            records: Their records, in the order of the steps; nothing is logged if there are none.
            shown: For each record, whether each of its parameters is logged by itself.
            per_parameter: Whether to log the scalars of each of these parameters.
        """
        if not records:
            return
        batch = combine(records)
        if self._pending is not None and self._pending[0].step < batch.step:
            self._alert()
        values = total_scalars(batch)
        for record in records if self._several_optimizers else ():
            values |= total_scalars(record, f"{PREFIX}/optimizer_{record.optimizer}")
        if per_parameter:
            for record, mask in zip(records, shown, strict=True):
                values |= parameter_scalars(record, mask)
        self._each("scalars", lambda adapter: adapter.scalars(values, batch.step))
        if batch.histograms:
            histograms = _named(batch.histograms)
            self._each("histograms", lambda adapter: self._write_histograms(adapter, histograms, batch.step))

    def finding(self, finding: Finding, advice: str = "", begins_incident: bool = False) -> None:
        """Log a finding: the first three of the same sign and severity, the 10th, the 100th and so on.

        Args:
            finding: The finding.
            advice: What to do about it.
            begins_incident: Whether it begins an incident or increases its severity. If its severity is at least the
                alert level, loggers then send an alert, also for the first three, the 10th, the 100th and so on.
        """
        kind = f"{finding.sign} {finding.severity}"
        if self._repeats.is_due(f"finding {kind}"):
            self._each("finding", lambda adapter: adapter.finding(finding, advice))
        if not begins_incident or finding.severity < self._alert_level:
            return
        if self._repeats.is_due(kind):
            self._alert()
            self._pending = finding, advice
            if finding.severity < Severity.CRITICAL:
                self._alert()

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Log the diagnosis of the current incident at a step, if it has changed.

        Of those with the same first cause, the first three, the 10th, the 100th and so on are logged. The alert of a
        CRITICAL finding is sent at this time, so that it contains the first cause and the first remedy.
        """
        if self._pending is not None:
            self._pending = self._pending[0], advice_of(diagnosis) or self._pending[1]
            self._alert()
        if diagnosis == self._diagnosis:
            return
        self._diagnosis = diagnosis
        if self._repeats.is_due(f"diagnosis {diagnosis.causes[0].kind if diagnosis.causes else ''}"):
            self._each("diagnosis", lambda adapter: adapter.diagnosis(diagnosis, step))

    def report(self, report: Report) -> None:
        """Log a report: the first three of a run, the 10th, the 100th and so on, since each has a few megabytes."""
        self._alert()
        if self._repeats.is_due("report"):
            self._each("report", lambda adapter: adapter.report(report))

    def _alert(self) -> None:
        """Send the alert that waits for a diagnosis, if there is one."""
        if self._pending is not None:
            (finding, advice), self._pending = self._pending, None
            self._each("alert", lambda adapter: adapter.alert(finding, advice))

    def _write_histograms(self, adapter: LoggerAdapter, histograms: Mapping[str, Histogram], step: int) -> None:
        if adapter.takes_histograms:
            adapter.histograms(histograms, step)
        elif not getattr(adapter.logger, "scalars_only", False):
            self._warn_once(f"{type(adapter.logger).__name__} does not support histograms, so that none are logged")

    def _each(self, kind: str, write: Callable[[LoggerAdapter], None]) -> None:
        if self._adapters is None:
            # Opened at the first write, since opening an experiment may start a run on a server.
            self._adapters = []
            for logger in self._loggers:
                with self._isolated(logger):
                    adapter = adapter_for(logger)
                    self._adapters.append(adapter)
                    adapter.started()
            with self._isolated("notifications"):
                notifier = Notifier.from_environment()
                if notifier is not None:
                    self._adapters.append(notifier)
        for adapter in [*self._adapters]:
            failures = self._failures.get((id(adapter), kind), 0)
            self._failures[id(adapter), kind] = failures + 1
            name = type(adapter.logger).__name__
            started = time.perf_counter()
            with self._isolated(adapter.logger):
                write(adapter)
                self._failures[id(adapter), kind] = 0
            seconds = time.perf_counter() - started
            if seconds > SLOW_CALL:
                self._warn_once(f"{name} is slow and delays training", f" (a call took {seconds:.1f} s)")
            if self._failures[id(adapter), kind] >= MAX_FAILURES:
                self._adapters.remove(adapter)
                self._warn_once(f"{name} is no longer used after {MAX_FAILURES} failures in a row")

    @contextmanager
    def _isolated(self, logger: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            name = logger if isinstance(logger, str) else type(logger).__name__
            message = f"{name} failed, its data are lost: {type(error).__name__}"
            # Not part of the message: the error's text may differ each time.
            details = describe(error).removeprefix(type(error).__name__)
            self._warn_once(message, details)

    def _warn_once(self, message: str, details: str = "") -> None:
        if message not in self._warned:
            self._warned.add(message)
            log(logging.WARNING, f"gradexplode: {message}{details}")


def _named(histograms: Mapping[str, Mapping[str, Histogram]]) -> dict[str, Histogram]:
    """Return histograms by logged name; one per module if there are too many."""
    return {
        f"{PREFIX}/{quantity}/{printable(name)}": histogram
        for quantity, each in histograms.items()
        for name, histogram in _merged(each).items()
    }


def _merged(histograms: Mapping[str, Histogram]) -> Mapping[str, Histogram]:
    if len(histograms) <= MAX_HISTOGRAMS:
        return histograms
    each = list(histograms.values())
    groups = _by_module(list(histograms), MAX_HISTOGRAMS)
    return {name: Histogram.merged(each[place] for place in places) for name, places in groups.items()}


def _by_module(names: Sequence[str], at_most: int) -> dict[str, list[int]]:
    """Group parameters by the deepest level of their modules at which there are few enough groups.

    Args:
        names: Names of parameters, with dots between modules.
        at_most: Largest number of groups; the outermost modules are not grouped further, however many there are.

    Returns:
        Places in ``names``, by the group's name: the parameter's own where nothing has to be grouped.
    """
    deepest = max((name.count(".") + 1 for name in names), default=1)
    for depth in range(deepest, 0, -1):
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(place)
        if len(groups) <= at_most:
            break
    return groups if names else {}
