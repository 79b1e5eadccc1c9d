"""The norm of all weights relative to the start of the run."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.records import FloatArray, StepRecord
from lightning_gradexplode.records.state import Stateful

MOVED = 1.5
"""Growth of the weights from which they have moved, and losses are no longer those of the start."""


class WeightBaseline(Stateful):
    """The norm of all weights relative to the start of the run.

    The start is the norm before the first step. Weights that start next to zero, as those of a new last layer may, grow
    by large factors in healthy runs: their growth is measured from an average size of `usual` instead, and is
    `in_doubt`. Parameters that join later, such as those of layers that are unfrozen, start when they join.

    Args:
        usual: Root mean square below which weights start next to zero; that of GPT-2 is 0.02.

    Attributes:
        moved: Whether the weights, or half of the parameters, have ever been `MOVED` times as large as at the start.
    """

    also_saved = ("moved",)
    not_saved = ("_names",)

    _first: float | None

    def __init__(self, usual: float = 0.01) -> None:
        self.usual = usual
        self._first = None
        self._level = 0.0
        self._last = 0.0
        self._starts: list[float] = []
        self._names: tuple[str, ...] = ()  # those of `_starts`; empty in a resumed run until its first measurement
        self.moved = False

    def update(self, record: StepRecord) -> None:
        """Record a step's weights, if they were measured."""
        norm = record.weight_norm
        if self._names and record.parameters != self._names:
            self._join(record)
        self._names = record.parameters
        if self._first is None:
            before = norm if record.weight_norm_before is None else record.weight_norm_before
            if before is None or not math.isfinite(before):
                return
            self._first = self._last = before
            self._level = max(before, self.usual * math.sqrt(record.weight_count or 0))
            self._starts = _norms_before(record)
        if norm is not None and math.isfinite(norm):
            self._last = norm
            self.moved = self.moved or self.growth > MOVED or self._most_have_moved(record)

    def _join(self, record: StepRecord) -> None:
        """Measure growth from a start that includes the parameters that have joined, without those that have left."""
        now = _norms_before(record)
        if len(now) != len(record.parameters) or len(self._starts) != len(self._names) or not np.isfinite(now).all():
            self._first = None  # the run starts anew
            return
        starts = dict(zip(self._names, self._starts, strict=True))
        self._starts = [starts.get(name, norm) for name, norm in zip(record.parameters, now, strict=True)]
        floor = self._level if self.in_doubt else 0.0
        self._first, self._last = math.hypot(*self._starts), math.hypot(*now)
        self._level = max(self._first, floor)

    def growth_each(self, record: StepRecord) -> FloatArray:
        """Return the growth of each parameter; one that started next to zero is compared with the others' mean.

        Returns:
            Shape ``(parameters,)``, or ``(0,)`` where it is not known.
        """
        norms = record.per_parameter.get("weight_norm", np.empty(0))
        if len(norms) != len(self._starts) or not len(norms):
            return np.empty(0)
        starts = np.asarray(self._starts)
        growth: FloatArray = norms / np.maximum(starts, max(0.1 * float(np.mean(starts)), 1e-30))
        return growth

    def _most_have_moved(self, record: StepRecord) -> bool:
        growth = self.growth_each(record)
        return len(growth) > 0 and bool(np.median(growth) > MOVED)

    @property
    def growth(self) -> float:
        """The last measured norm divided by that of the start; 1 as long as the start is not known."""
        return self._last / self._level if self._level > 0 else 1.0

    @property
    def norm(self) -> float:
        """The last measured norm; 0 before the first measurement."""
        return self._last

    @property
    def start(self) -> float:
        """The norm that growth is measured from."""
        return self._level

    @property
    def in_doubt(self) -> bool:
        """Whether the weights started next to zero, or are not known, so that their growth shows little."""
        return self._first is None or self._first < self._level or self._level <= 0


def _norms_before(record: StepRecord) -> list[float]:
    """Return the norms of the parameters before a step, or after it if only these are known."""
    norms = record.per_parameter.get("weight_norm_before", record.per_parameter.get("weight_norm"))
    return [] if norms is None else norms.tolist()
