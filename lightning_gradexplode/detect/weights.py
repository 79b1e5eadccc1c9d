"""Symptoms that the weights show: the article's subtle signs 4 and 5."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, Severity, StepRecord


class NonFiniteWeight(Detector):
    """A weight is NaN or infinite: the article's sign 5. The run is lost; no later step can mend it."""

    sign = "nonfinite-weight"
    reads = ("nonfinite_weights",)

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the count of parameters with non-finite elements."""
        count = record.nonfinite_weights
        assert count is not None
        if not count:
            return None
        message = f"{count} parameter{'s have' if count > 1 else ' has'} NaN or infinite weights"
        return self.finding(record, Severity.CRITICAL, count, 0, message, record.first_nonfinite("weight_norm"))


class WeightGrowth(Detector):
    """The weights have grown far beyond where they started: the article's sign 4, over the whole run.

    Args:
        limit: Times the first norm that is a warning.
        lost: Times the first norm that is critical.
    """

    sign = "weight-growth"
    reads = ("weight_norm",)

    def __init__(self, limit: float = 10.0, lost: float = 50.0) -> None:
        self.limit = limit
        self.lost = lost
        self._first: float | None = None

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the norm of all weights against the first one measured."""
        norm = record.weight_norm
        assert norm is not None
        if not math.isfinite(norm):
            return None
        if self._first is None:
            self._first = norm
        if self._first <= 0 or norm <= self.limit * self._first:
            return None
        certain = norm > self.lost * self._first
        message = f"the weights' norm is {norm:.3g}, {norm / self._first:.3g} times that of the start"
        severity = Severity.CRITICAL if certain else Severity.WARNING
        limit = (self.lost if certain else self.limit) * self._first
        return self.finding(record, severity, norm, limit, message, record.largest("weight_norm"))


class LargeUpdate(Detector):
    """One step changes the weights too much: the article's sign 4, from update to update.

    The usual ratio of update to weight is near 1e-3 (Stanford's cs231n notes, "Learning"); judged is the ratio over
    all weights, from the second measurement on, since the first steps of an adaptive optimizer are large by design.

    Args:
        limit: Ratio that is a warning.
        patience: Measurements in a row.
    """

    sign = "large-update"
    reads = ("update_ratio",)

    def __init__(self, limit: float = 0.1, patience: int = 2) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's update ratio."""
        ratio = record.update_ratio
        assert ratio is not None
        self._streak = self._streak + 1 if ratio > self.limit else 0
        if self._streak < self.patience:
            return None
        message = f"one step changed the weights by {ratio:.3g} of their norm"
        return self.finding(record, Severity.WARNING, ratio, self.limit, message, record.largest("update_ratio"))
