"""Symptoms in the weights: the article's sign 4."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.weight_baseline import WeightBaseline
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.records.text import step_count


class WeightGrowth(Detector):
    """The weights grow far beyond where they started: the article's sign 4, over the whole run.

    The norm of all weights is compared with the norm before the first step (`WeightBaseline`). WARNING from `limit`
    times the start, while the logarithm of the norm grows at least as fast as on average since the start, which is not
    so for weights that approach a level. CRITICAL from `confirmed` times the start if the loss is `units` above its
    start, and from `lost` times in any case, unless the weights started close to zero, or the loss is positive and has
    fallen to less than `fallen` of its start: some weights have far to go, such as a bias to targets near 1000, or the
    natural parameters of a distribution. INFO from `confirmed` times the start otherwise.

    Args:
        limit: Norm divided by that of the start that is a WARNING while the growth is geometric.
        confirmed: The same that is CRITICAL with a loss above its start.
        lost: The same that is CRITICAL in any case.
        units: Rise of the loss, in the units of `LossBaseline`; with a positive loss 2 means three times the start.
        fallen: Share of its start that a positive loss has fallen below while the weights have reached what they
            need. A loss without a lower bound falls, too, but becomes negative.
    """

    sign = "weight-growth"
    reads = ("weight_norm",)

    def __init__(
        self, limit: float = 8.0, confirmed: float = 10.0, lost: float = 40.0, units: float = 2.0, fallen: float = 0.5
    ) -> None:
        self.limit = limit
        self.confirmed = confirmed
        self.lost = lost
        self.units = units
        self.fallen = fallen

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the norm of all weights with that of the start."""
        norm = record.weight_norm
        assert norm is not None
        baselines = self.baselines(record)
        weights, growth, rate = baselines.weights, baselines.weights.growth, baselines.weight_rate
        if not math.isfinite(norm) or growth <= self.limit:
            return None
        has_fallen = record.loss is not None and 0 <= record.loss < self.fallen * baselines.loss.start
        alone = growth > self.lost and not weights.in_doubt and not has_fallen
        message = f"the weights' norm is {norm:.3g}, {growth:.3g} times that of the start"
        if alone or (growth > self.confirmed and baselines.loss_rise >= self.units):
            severity, limit = Severity.CRITICAL, self.lost if alone else self.confirmed
        elif rate.is_geometric and not weights.in_doubt:
            severity, limit = Severity.WARNING, self.limit
            message += (
                f"; at this rate it is {self.lost:g} times that in about {step_count(rate.steps_until(self.lost))}"
            )
        elif growth > self.confirmed:
            severity, limit = Severity.INFO, self.confirmed
        else:
            return None
        return self.finding(record, severity, norm, limit * weights.start, message, _grown_most(weights, record))


def _grown_most(weights: WeightBaseline, record: StepRecord) -> str | None:
    growth = weights.growth_each(record)
    if not len(growth):
        return None
    return record.parameters[int(np.argmax(np.where(np.isnan(growth), np.inf, growth)))]


class LargeUpdate(Detector):
    """One step changes the weights too much: the article's sign 4, from update to update.

    The usual ratio of update norm to weight norm is about 1e-3 (Stanford's cs231n notes, "Learning"). WARNING if the
    ratio over all weights exceeds `limit` at `patience` consecutive measurements, since the first steps of an adaptive
    optimizer are large by design. Weights that start close to zero, such as new biases, count with the minimum size of
    `WeightBaseline`.

    Args:
        limit: Ratio that is a WARNING, 300 times the usual one.
        patience: Number of consecutive measurements.
    """

    sign = "large-update"
    reads = ("update_ratio",)

    def __init__(self, limit: float = 0.3, patience: int = 5) -> None:
        self.limit = limit
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's update ratio with the limit."""
        ratio, before = record.update_ratio, record.weight_norm_before
        assert ratio is not None
        start = self.baselines(record).weights.start
        if before is not None and before < start:
            ratio = ratio * before / start if before > 0 else 0.0
        self._streak = self._streak + 1 if ratio > self.limit else 0
        if self._streak < self.patience:
            return None
        message = f"each step changes the weights by a large part: the last one by {ratio:.3g} times their norm"
        return self.finding(record, Severity.WARNING, ratio, self.limit, message, record.largest("update_ratio"))
