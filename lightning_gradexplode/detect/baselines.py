"""Where a run started: the baselines of its loss and its weights that all detectors of an optimizer share."""

from __future__ import annotations

import math
import sys

from lightning_gradexplode.detect.excursion import Excursion
from lightning_gradexplode.detect.growth import GrowthRate, Trend
from lightning_gradexplode.detect.loss_baseline import LossBaseline
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.weight_baseline import WeightBaseline
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful

_SCALE = 1e-3
"""Unit of the loss, over gradient norm times norm of the weights, below which a loss that starts at zero has no
scale."""


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

    @property
    def loss(self) -> LossBaseline:
        """The loss at the start of the run."""
        return self._loss

    @property
    def weights(self) -> WeightBaseline:
        """The norm of the weights relative to the start."""
        return self._weights

    @property
    def weight_rate(self) -> GrowthRate:
        """The rate at which the norm of the weights grows."""
        return self._weight_rate

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
        if record.loss is not None and math.isfinite(record.loss) and math.isfinite(self.loss_rise):
            self._loss_trend.add(self.loss_rise)
            self._excursion.update(self.loss_rise, self._weights.growth)
        self._loss.update(record.loss, self._weights.moved)
        norm = record.grad_norm
        if norm is not None and 0 < norm < math.inf:
            if self._norms.count < self._norms.size:
                self._norms.add(norm)
            relative = min(norm / self._norms.lower_quartile, sys.float_info.max)
            self._gradient_growth = min(relative * self._weights.growth, sys.float_info.max)

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
