"""The gradient histograms that a report compares: those of the last step without a finding, and the latest."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_gradexplode.records import Histogram, IntArray, StepRecord

Sparse = tuple[IntArray, IntArray, int]
"""A histogram as `Histogram.sparse` returns it."""


class GradientHistory:
    """Keeps the gradient histograms of two steps of each optimizer: the last one without a finding, and the latest."""

    def __init__(self) -> None:
        self._calm: dict[int, tuple[int, Mapping[str, Sparse]]] = {}
        self._latest: dict[int, tuple[int, Mapping[str, Sparse]]] = {}

    def add(self, record: StepRecord) -> None:
        """Keep the histograms of a step, if it has any."""
        histograms = record.histograms.get("gradient")
        if histograms:
            kept = {name: histogram.sparse() for name, histogram in histograms.items()}
            steps = self._latest if record.severity else self._calm
            steps[record.optimizer] = record.step, kept

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose histograms are kept."""
        each = (kept for steps in (self._calm, self._latest) for _, kept in steps.values())
        return list(dict.fromkeys(name for kept in each for name in kept))

    def of(self, parameter: str | None) -> tuple[tuple[int, Histogram], ...]:
        """Return steps and histograms of a parameter, the step without a finding first."""
        return tuple(
            (step, Histogram.from_sparse(*kept[parameter]))
            for steps in (self._calm, self._latest)
            for step, kept in steps.values()
            if parameter is not None and parameter in kept
        )
