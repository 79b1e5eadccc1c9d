"""The gradient histograms that a report compares: those of a step with a finding, and of one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning_gradexplode.records import Histogram, IntArray, Severity, StepRecord

Sparse = tuple[IntArray, IntArray, int]
"""A histogram as `Histogram.sparse` returns it."""

Step = tuple[int, Mapping[str, Sparse]]
"""The number of a step, and the histograms of its parameters."""

MIN_ELEMENTS = 8
"""Number of elements from which a histogram shows a distribution; the bias of a single output has none."""


class GradientHistory:
    """Keeps histograms of each optimizer: of the latest step with at least a warning, and of the last calm one before.

    Until there is a warning, those of the latest step are kept. Of consecutive steps with a warning, a parameter keeps
    the latest one at which its gradient has finite elements other than zero, which a chart can show.
    """

    def __init__(self) -> None:
        self._calm: dict[int, Step] = {}
        self._before: dict[int, Step] = {}
        self._found: dict[int, dict[str, tuple[int, Sparse]]] = {}

    def add(self, record: StepRecord) -> None:
        """Keep the histograms of a step, if it has any."""
        histograms, optimizer = record.histograms.get("gradient", {}), record.optimizer
        kept = {
            name: histogram.sparse()
            for name, histogram in histograms.items()
            if histogram.finite + histogram.nonfinite >= MIN_ELEMENTS
        }
        if not kept:
            return
        if record.severity < Severity.WARNING:
            self._calm[optimizer] = record.step, kept
            return
        if optimizer in self._calm:
            self._before[optimizer] = self._calm.pop(optimizer)
            self._found[optimizer] = {}
        found = self._found.setdefault(optimizer, {})
        for name, one in kept.items():
            if name not in found or histograms[name].magnitudes()[0].any():
                found[name] = record.step, one

    def _steps(self) -> Iterator[Step]:
        yield from self._before.values()
        yield from ((step, {name: one}) for found in self._found.values() for name, (step, one) in found.items())
        yield from (step for optimizer, step in self._calm.items() if optimizer not in self._found)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose histograms are kept."""
        return list(dict.fromkeys(name for _, kept in self._steps() for name in kept))

    def of(self, parameter: str | None) -> tuple[tuple[int, Histogram], ...]:
        """Return steps and histograms of a parameter, the earlier step first."""
        return tuple(
            (step, Histogram.from_sparse(*kept[parameter]))
            for step, kept in self._steps()
            if parameter is not None and parameter in kept
        )
