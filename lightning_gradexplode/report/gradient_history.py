"""The gradients that a report shows besides their norms: histograms of two steps, and error gradients of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lightning_gradexplode.records import Histogram, IntArray, ModuleGradients, Severity, StepRecord
from lightning_gradexplode.report.rows import find_place

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

    Attributes:
        modules: The latest error gradients of modules with a gain that is finite, None without any.
    """

    def __init__(self) -> None:
        self._calm: dict[int, Step] = {}
        self._before: dict[int, Step] = {}
        self._found: dict[int, dict[str, tuple[int, Sparse]]] = {}
        self._norms: dict[str, float] = {}  # of the latest step with histograms
        self.modules: ModuleGradients | None = None

    def add(self, record: StepRecord) -> None:
        """Keep the histograms of a step, with the norms of its gradients, and its error gradients of modules."""
        if record.module_gradients is not None and np.isfinite(record.module_gradients.gain).any():
            self.modules = record.module_gradients
        histograms, norms = record.histograms.get("gradient", {}), record.per_parameter.get("grad_norm")
        if histograms and norms is not None:
            sizes = np.nan_to_num(norms, nan=np.inf, posinf=np.inf)  # NaN counts as the largest
            self._norms = dict(zip(record.parameters, sizes.tolist(), strict=True))
        self._add_histograms(histograms, record)

    def _add_histograms(self, histograms: Mapping[str, Histogram], record: StepRecord) -> None:
        optimizer = record.optimizer
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

    def shown_of(self, places: Iterable[str]) -> str | None:
        """Return the parameter whose histograms are shown.

        Args:
            places: Names of parameters or modules, the most wanted first.

        Returns:
            The first parameter that is in one of these places, else the one with the largest gradient; None if no
            histograms are kept.
        """
        kept = self.parameters
        found = (find_place(kept, place) for place in places)
        place = next((one for one in found if one is not None), None)
        return max(kept, key=lambda name: self._norms.get(name, 0.0), default=None) if place is None else kept[place]

    def of(self, parameter: str | None) -> tuple[tuple[int, Histogram], ...]:
        """Return steps and histograms of a parameter, the earlier step first."""
        return tuple(
            (step, Histogram.from_sparse(*kept[parameter]))
            for step, kept in self._steps()
            if parameter is not None and parameter in kept
        )
