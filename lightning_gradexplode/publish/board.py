"""All loggers of a run: what is measured goes to each, and one that fails costs only its own data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.scalars import PREFIX, per_parameter, totals
from lightning_gradexplode.publish.tensorboard import TensorBoardPublisher
from lightning_gradexplode.publish.wandb import WandbPublisher
from lightning_gradexplode.records import Finding, Histogram, Report, StepRecord

logger = logging.getLogger("lightning_gradexplode")

KINDS: tuple[type[Publisher], ...] = (TensorBoardPublisher, WandbPublisher, Publisher)
"""The publishers, the first that accepts a logger's experiment being taken."""


class Board:
    """Publishes to all loggers of a trainer; on the main process only.

    Args:
        loggers: Lightning loggers.
        several_optimizers: Whether the run has more than one.
    """

    def __init__(self, loggers: Sequence[Any], several_optimizers: bool = False) -> None:
        self._several_optimizers = several_optimizers
        self._loggers = list(loggers)
        self._publishers: list[Publisher] | None = None
        self._told: set[str] = set()

    def record(self, record: StepRecord, shown: Sequence[bool], every_parameter: bool) -> None:
        """Write a record's scalars, those of each shown parameter if asked for, and its histograms."""
        values = totals(record, self._several_optimizers)
        if every_parameter:
            values |= per_parameter(record, shown)
        self._each(lambda publisher: publisher.scalars(values, record.step))
        if record.histograms:
            self._histograms(record)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Tell each logger of a finding, and what to do about it."""
        self._each(lambda publisher: publisher.finding(finding, advice))

    def report(self, report: Report) -> None:
        """Show each logger a report that was written."""
        self._each(lambda publisher: publisher.report(report))

    def _histograms(self, record: StepRecord) -> None:
        named: Mapping[str, Histogram] = {
            f"{PREFIX}/{quantity}/{parameter}": histogram
            for quantity, histograms in record.histograms.items()
            for parameter, histogram in histograms.items()
        }

        def write(publisher: Publisher) -> None:
            if publisher.takes_histograms:
                publisher.histograms(named, record.step)
            else:
                kind = type(publisher.logger).__name__
                self._tell_once(f"{kind} takes no histograms; it gets the scalars only")

        self._each(write)

    def _each(self, write: Callable[[Publisher], None]) -> None:
        if self._publishers is None:
            # A logger's experiment is opened at the first write, and not sooner than the user would have it.
            self._publishers = []
            for one in self._loggers:
                with self._failing_alone(one):
                    publisher = _publisher(one)
                    self._publishers.append(publisher)
                    publisher.started()
        for publisher in self._publishers:
            with self._failing_alone(publisher.logger):
                write(publisher)

    @contextmanager
    def _failing_alone(self, one: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell_once(f"{type(one).__name__} failed, its data are lost: {type(error).__name__}: {error}")

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("gradexplode: %s", message)


def _publisher(one: Any) -> Publisher:
    experiment = getattr(one, "experiment", None)
    return next(kind for kind in KINDS if kind.accepts(experiment))(one)
