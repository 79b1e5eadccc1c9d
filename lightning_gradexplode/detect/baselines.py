"""Where a run started: the baselines of its loss and its weights that all detectors of an optimizer share."""

from __future__ import annotations

import math
import sys
from operator import attrgetter

import numpy as np

from lightning_gradexplode.detect.excursion import Excursion
from lightning_gradexplode.detect.growth import GrowthRate, Trend
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.wandering import Wandering
from lightning_gradexplode.records import FloatArray, StepRecord
from lightning_gradexplode.records.state import Stateful

MOVED = 1.5
"""Growth of the weights from which they have moved, and losses are no longer those of the start."""

_SCALE = 1e-3
"""Unit of the loss, over gradient norm times norm of the weights, below which a loss that starts at zero has no
scale."""

_BOOTSTRAP = 20
"""So many decreases are noise even further above the start, since a loss around zero has no other unit at first."""

_LEAST = 1e-30
"""Stands for a unit of zero."""


class WeightBaseline(Stateful):
    """The norm of all weights relative to the start of the run.

    The start is the norm before the first step. Weights that start next to zero, as those of a new last layer may, have
    a long way to go in a good cause: their growth is measured from an average size of `usual` instead, and is in doubt.

    Args:
        usual: Root mean square of weights that is small for a start; that of GPT-2 is 0.02.
    """

    _first: float | None

    def __init__(self, usual: float = 0.01) -> None:
        self.usual = usual
        self._first = None
        self._level = 0.0
        self._last = 0.0
        self._starts: list[float] = []
        self._moved = False

    def update(self, record: StepRecord) -> None:
        """Record a step's weights, if they were measured."""
        norm = record.weight_norm
        if self._first is None:
            before = norm if record.weight_norm_before is None else record.weight_norm_before
            if before is None or not math.isfinite(before):
                return
            self._first = self._last = before
            self._level = max(before, self.usual * math.sqrt(record.weight_count or 0))
            starts = record.per_parameter.get("weight_norm_before", record.per_parameter.get("weight_norm"))
            self._starts = [] if starts is None else starts.tolist()
        if norm is not None and math.isfinite(norm):
            self._last = norm
            self._moved = self._moved or self.growth > MOVED or self._most_have_moved(record)

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

    moved = property(
        attrgetter("_moved"),
        doc="Whether the weights, or half of the parameters, have ever been `MOVED` times as large as at the start.",
    )

    @property
    def growth(self) -> float:
        """The last norm measured over that of the start; 1 as long as there is none to compare with."""
        return self._last / self._level if self._level > 0 else 1.0

    norm = property(attrgetter("_last"), doc="The last norm measured; 0 as long as there is none.")

    start = property(attrgetter("_level"), doc="The norm that growth is measured from.")

    @property
    def in_doubt(self) -> bool:
        """Whether the weights started next to zero."""
        return self._first is None or self._first < self._level or self._level <= 0


class LossBaseline(Stateful):
    """The loss at the start of the run, with a unit of rise that fits a loss of any size and sign.

    The start is the lower quartile of the first losses, so that a fast rise among them is no part of it. The unit is
    the size of the start, or twice the median decrease from step to step, or the decrease that one in ten exceeds,
    whichever is largest: a noisy loss around zero has small values and a large unit, and decreases measure the noise
    alone, while increases are the explosion as well.

    Args:
        first: Number of losses that the start is taken from, at most.
        outside: Units of rise from which a loss is no part of the start, however early.
    """

    _last: float | None

    def __init__(self, first: int = 5, outside: float = 4.0) -> None:
        self.outside = outside
        self._start = RollingQuantiles(first)
        self._decreases = RollingQuantiles(100)
        self._last = None
        self._unit = _LEAST
        self._wandering = Wandering()
        self._away = 0

    def deviations(self, loss: float | None) -> float:
        """Return how far a loss is above the start, in standard deviations of what its noise wanders in as many steps.

        Counted are the steps since the loss was last at its start. Of the excursions of a random walk that last so
        long, exp(-k * k / 2) are further away than k deviations at that step, 1.1 % for three (its end is distributed
        as that of a Brownian meander, by Rayleigh's law: Durrett, Iglehart, Miller 1977).
        """
        if loss is None or not math.isfinite(loss) or not len(self._start):
            return 0.0
        deviations: float = (loss - self.start) / max(self._wandering.spread(self._away + 1), _LEAST)
        return deviations

    def rise(self, loss: float | None) -> float:
        """Return the units that a loss is above the start, negative below it; 0 if it is not known or not finite."""
        if loss is None or not math.isfinite(loss) or not self._start.count:
            return 0.0
        return (loss - self._start.lower_quartile) / self._unit

    def update(self, loss: float | None, moved: bool) -> None:
        """Record a step's loss.

        Args:
            loss: The loss.
            moved: Whether the weights have moved away from their start.
        """
        if loss is None or not math.isfinite(loss):
            return
        if self.rise(loss) <= self.outside and (not moved or self._start.count < 3):
            if self._start.count < self._start.size:
                self._start.add(loss)
            if self._last is not None and loss < self._last and self._is_noise(self._last, loss):
                self._decreases.add(min(self._last - loss, 1e300))
            self._unit = max(abs(self.start), self._noise(), _LEAST)
        self._wandering.add(loss, self.above(1), self.above(self.outside))
        self._away = 0 if loss <= self.start else self._away + 1
        self._last = loss

    def _is_noise(self, last: float, loss: float) -> bool:
        """Return whether a decrease is noise, and not the way back from a spike."""
        if self.rise(last) <= 1:
            return True
        return self._decreases.count < _BOOTSTRAP and (self.rise(last) <= self.outside or self.rise(loss) < -1)

    def _noise(self) -> float:
        """Return a large decrease from step to step."""
        count = self._decreases.count
        if not count:
            return 0.0
        return max(2 * self._decreases.median, self._decreases.quantile(0.9) if count >= 5 else 0.0)

    start = property(attrgetter("_start.lower_quartile"), doc="The loss that rises are measured from.")

    unit = property(attrgetter("_unit"), doc="The unit that rises are measured in.")

    def above(self, units: float) -> float:
        """Return the loss that is so many units above the start."""
        return self._start.lower_quartile + units * self._unit


class Baselines(Stateful):
    """The baselines of one optimizer, and how far the current step is from them.

    A `DetectorSet` updates them once per step; a detector that is used alone updates its own.

    Attributes:
        loss_rise: Units that the step's loss is above the start, by the baseline without it; 0 if it is not known, and
            for a loss that starts at zero, such as a divergence from a copy, as long as the weights have not moved.
        loss_deviations: The same in standard deviations of what the loss wanders by chance (`LossBaseline.deviations`);
            0 within one unit of the start.
        gradient_growth: Gradient norm times norm of the weights, over the same at the start; 1 if it is not known. To
            first order, this product is the change of the loss when the weights change by as much as they are large, so
            that it grows with a loss that explodes and not with one that merely finds its level.
    """

    def __init__(self) -> None:
        self._loss = LossBaseline()
        self._weights = WeightBaseline()
        self._norms = RollingQuantiles(5)
        self._weight_rate = GrowthRate()
        self._loss_trend = Trend()
        self._excursion = Excursion()
        self.loss_rise = 0.0
        self.loss_deviations = 0.0
        self._gradient_growth = 1.0

    loss = property(attrgetter("_loss"), doc="The loss at the start of the run.")

    weights = property(attrgetter("_weights"), doc="The norm of the weights relative to the start.")

    weight_rate = property(attrgetter("_weight_rate"), doc="The rate at which the norm of the weights grows.")

    @property
    def gradient_growth(self) -> float:
        """Gradient norm times norm of the weights, over the same at the start; of the last step with a gradient."""
        return self._gradient_growth

    @property
    def excursion(self) -> Excursion:
        """The steps since the loss was last at its start."""
        return self._excursion

    @property
    def loss_trend(self) -> Trend:
        """The trend of `loss_rise` over 32 steps."""
        return self._loss_trend

    def confirm(self, growth: float) -> bool:
        """Return whether gradients or weights confirm a loss that rises.

        Args:
            growth: Growth of the gradients that confirms it.
        """
        return self._weights.moved or self.gradient_growth >= growth

    def update_loss(self, record: StepRecord) -> None:
        """Record a step's loss and gradient norm."""
        self.loss_rise = self._loss.rise(record.loss) if self._has_scale else 0.0
        self.loss_deviations = self._loss.deviations(record.loss) if self.loss_rise > 1 else 0.0
        if record.loss is not None and math.isfinite(self.loss_rise):
            self._loss_trend.add(self.loss_rise)
        self._loss.update(record.loss, self._weights.moved)
        norm = record.grad_norm
        if norm is not None and 0 < norm < math.inf:
            if self._norms.count < self._norms.size:
                self._norms.add(norm)
            relative = min(norm / self._norms.lower_quartile, sys.float_info.max)
            self._gradient_growth = min(relative * self._weights.growth, sys.float_info.max)
        if math.isfinite(self.loss_rise):
            self._excursion.update(self.loss_rise, self._weights.growth)

    @property
    def _has_scale(self) -> bool:
        """Whether the loss at the start says how large a rise is; else it counts once the weights have moved."""
        if self._weights.moved or not self._norms.count:
            return True
        return bool(self._loss.unit >= _SCALE * self._norms.lower_quartile * self._weights.start)

    def update_weights(self, record: StepRecord) -> None:
        """Record a step's weights, where they were measured."""
        self._weights.update(record)
        if record.weight_norm is not None and math.isfinite(record.weight_norm):
            self._weight_rate.add(record.step, self._weights.growth)
