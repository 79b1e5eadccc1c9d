"""Baselines of the loss and the weights at the start of a run, shared by all detectors of an optimizer."""

from __future__ import annotations

import math
import sys

from lightning_gradexplode.detect.excursion import Excursion
from lightning_gradexplode.detect.growth import GrowthRate, Trend
from lightning_gradexplode.detect.joint_growth import JointGrowth
from lightning_gradexplode.detect.loss_baseline import LossBaseline
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.update_effect import UpdateEffect
from lightning_gradexplode.detect.weight_baseline import WeightBaseline
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful

_SCALE = 1e-3
"""A loss that starts at zero has no scale of its own if its unit is below this share of gradient norm times weight
norm."""

_VISIBLE = 0.1
"""Change of a loss without a scale of its own, as a share of gradient norm times weight norm, below which it shows
nothing once the weights have moved: the value of an objective such as that of on-policy policy gradients is a rounding
error, while its gradient is not."""

_STEEP = 100.0
"""Gradient norm times weight norm, divided by the unit of the loss, below which a gradient is small. At the first step
it is above 100 in one of 14 healthy runs."""

_STILL, _SHORT = 0.01, 0.03
"""Change of the weights' norm, and estimated length of an update, as shares of the norm at the start, up to which no
update has made a loss rise by far: an early batch was another one, as where few samples are of a rare class."""

FAR = 1e4
"""Units of rise of the loss, and growth of gradient norm times weight norm, that are no start of a run, however early:
the norms of such steps do not count among the first ones."""


class Baselines(Stateful):
    """The baselines of one optimizer, and how far the current step is from them.

    A `DetectorSet` updates them once per step; a detector that is used alone updates its own.

    Attributes:
        loss: The loss at the start of the run.
        weights: The norm of the weights relative to the start.
        weight_rate: The rate at which the norm of the weights grows.
        loss_trend: The trend of `loss_rise` over 32 steps.
        update_effect: The largest change of the loss that the last update can have caused.
        excursion: The steps since the loss was last at its start.
        joint_growth: Whether loss, gradients and weights grow together.
        loss_rise: Units that the step's loss is above the start, by the baseline without it; 0 if it is not known, and
            for a loss that starts at zero, such as a divergence from a copy, as long as the weights have not moved, or
            the loss is next to zero against its gradient.
        loss_deviations: The same in standard deviations of a random walk (`LossBaseline.deviations`); 0 within one unit
            of the start.
        gradient_growth: Gradient norm times norm of the weights, divided by the same at the start, of the last step
            with a gradient; 1 if it is not known. To first order, this product is the change of the loss when the
            weights change by their own norm, so that it grows with a loss that explodes, but not with one that rises
            to a level.
    """

    not_saved = ("_weight_count", "_longest")  # of the first steps only

    also_saved = (
        *("loss", "weights", "weight_rate", "loss_trend", "excursion", "joint_growth"),
        *("gradient_growth", "update_effect"),
    )

    def __init__(self) -> None:
        self.loss = LossBaseline()
        self.weights = WeightBaseline()
        self.weight_rate = GrowthRate()
        self.loss_trend = Trend()
        self.excursion = Excursion()
        self.joint_growth = JointGrowth()
        self.update_effect = UpdateEffect()
        self.loss_rise = 0.0
        self.loss_deviations = 0.0
        self.gradient_growth = 1.0
        self._norms = RollingQuantiles(5)
        self._is_self_reinforcing = False
        self._weight_count = 0
        self._longest = 0.0  # estimated length of the longest update, as a share of the weights' norm; 0 if unknown

    def update_loss(self, record: StepRecord) -> None:
        """Record a step's loss and gradient norm."""
        weights = self.weights.growth
        largest_change = self.update_effect.begin(record, self.weights.norm)
        if record.loss is not None and math.isfinite(record.loss):
            self._update_rise(record.loss, weights, largest_change)
        else:
            self.loss_rise = self.loss_deviations = 0.0
        norm = record.grad_norm
        if self._norms.count < self._norms.size:
            self._estimate_length(norm, record.learning_rate)
        if norm is not None and 0 < norm < math.inf:
            if self._norms.count < self._norms.size and (self.loss_rise < FAR or self._are_still):
                self._norms.add(norm)
            # Without a level where the loss has been zero, without gradients, until it rose.
            relative = min(norm / self._norms.lower_quartile, sys.float_info.max) if self._norms.count else 1.0
            self.gradient_growth = min(relative * weights, sys.float_info.max)
            if math.isfinite(self.loss_rise):
                self.joint_growth.update(self.loss_rise, norm, weights)

    def _update_rise(self, loss: float, weights: float, largest_change: float) -> None:
        self.loss.shift_by(loss, largest_change, self._is_self_reinforcing)
        rise = self.loss.rise(loss)
        self.loss_rise = rise if self._has_scale(loss) else 0.0
        self.loss_deviations = self.loss.deviations(loss) if self.loss_rise > 1 else 0.0
        if math.isfinite(self.loss_rise):
            self.loss_trend.add(self.loss_rise)
            self.excursion.update(self.loss_rise, weights)
        if self.excursion.steps == 0:
            self._is_self_reinforcing = False
        elif self.joint_growth.rates() is not None:
            self._is_self_reinforcing = True
        self.loss.update(loss, min(rise, self.loss.outside) if self._are_still else rise, self.weights.moved)

    def _estimate_length(self, norm: float | None, rate: float | None) -> None:
        """Estimate the length of an update of gradient descent, or of one whose elements have the size of the rate."""
        if norm is None or rate is None or not math.isfinite(norm) or not self.weights.start or not self._weight_count:
            return
        length = rate * max(norm, math.sqrt(self._weight_count)) / self.weights.start
        self._longest = max(self._longest, length)

    @property
    def _are_still(self) -> bool:
        """Whether these are the first steps, and the weights are known to be those of the start, nearly."""
        is_start = self._norms.count < self._norms.size
        return is_start and 0 < abs(self.weights.growth - 1) < _STILL and 0 < self._longest < _SHORT

    def has_small_gradient(self, record: StepRecord) -> bool:
        """Return whether a step's gradient is small against loss and weights, so that its growth is harmless.

        To first order, weights that change by their own norm along a small gradient change the loss by less than
        `_STEEP` times its unit at the start. False if gradient, loss or weights are not known.
        """
        norm, weights = record.grad_norm, self.weights.norm or record.weight_norm_before
        if norm is None or record.loss is None or not weights:
            return False
        return norm * weights < _STEEP * self.loss.unit

    def _has_scale(self, loss: float) -> bool:
        """Return whether rises can be measured in units of the loss at the start, or a loss is far from its start."""
        if not self._norms.count:
            return True
        if self.loss.unit >= _SCALE * self._norms.lower_quartile * self.weights.start:
            return True
        # The smallest of the first norms, since the others may be those of an explosion.
        smallest = self._norms.quantile(0.0) * self.weights.start
        return self.weights.moved and abs(loss - self.loss.start) >= _VISIBLE * smallest

    def update_weights(self, record: StepRecord) -> None:
        """Record a step's weights, if they were measured."""
        self.weights.update(record)
        self._weight_count = record.weight_count or self._weight_count
        self.update_effect.measured(record)
        if record.weight_norm is not None and math.isfinite(record.weight_norm):
            self.weight_rate.add(record.step, self.weights.growth)
