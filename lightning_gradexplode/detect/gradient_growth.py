"""Gradient norms that leave their usual level, at one step or permanently."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import Baselines
from lightning_gradexplode.detect.growth import WINDOW, keeps_rising
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.weight_baseline import MOVED
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.records.text import step_count

_MIN_SPREAD = 0.1
"""Least standard deviation of the logarithm of the gradient norm, since norms may be constant for some steps."""

_FAR_OUT = 6.0
"""Standard deviations from which a norm is far outside of the earlier ones, as in OLMo-core's stability monitor."""

_LOST_WEIGHTS = 40.0
"""Growth of the weights to which a projection is made."""


class _AgainstHistory(Detector):
    """Base class of detectors that compare the logarithm of the gradient norm with those of calm steps before.

    Args:
        window: Number of steps compared with.
        start: Number of steps before anything is compared.
    """

    reads = ("grad_norm",)
    locates_growth = True

    def __init__(self, window: int, start: int) -> None:
        self.start = start
        self._history = RollingQuantiles(window)

    def _rise(self, logarithm: float) -> tuple[float, float]:
        """Return the rise of a logarithm of the norm over the usual one, and the same in standard deviations."""
        if self._history.count < self.start:
            return 0.0, 0.0
        rise = logarithm - self._history.median
        return rise, rise / max(self._history.spread, _MIN_SPREAD)


class GradientSpike(_AgainstHistory):
    """The norm of all gradients is far above its usual level at a single step.

    The logarithm of the norm is compared with the median and the quartiles of the last `window` steps that were not
    spikes. INFO if the norm is more than `limit` standard deviations (the value of OLMo-core's stability monitor) above
    the median, and more than `factor` times the median. The first step of a spike is a WARNING if the gradient is not
    small (`Baselines.has_small_gradient`) and the norm is also `factor` times the largest of these steps: after 128
    values of any distribution, the next value is the largest with a probability of 1/129, and far larger only if the
    distribution has no finite variance.

    Args:
        limit: Standard deviations.
        factor: Norm divided by the median, and for a WARNING divided by the largest.
        window: Number of steps that the norm is compared with.
        start: Number of steps without a comparison at the start.
    """

    sign = "gradient-spike"

    def __init__(self, limit: float = 6.0, factor: float = 8.0, window: int = 128, start: int = 20) -> None:
        super().__init__(window, start)
        self.limit = limit
        self.factor = factor
        self._streak = 0
        self._largest = 0.0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with those before."""
        norm = record.grad_norm
        assert norm is not None
        baselines = self.baselines(record)
        if not 0 < norm < math.inf:
            return None
        logarithm = math.log(norm)
        rise, deviations = self._rise(logarithm)
        spike = deviations > self.limit and rise > math.log(self.factor)
        self._streak = self._streak + 1 if spike else 0
        if not spike or self._streak > 10:  # after ten steps it is a new level, or growth
            self._history.add(logarithm)
            return None
        usual, largest = math.exp(self._history.median), max(math.exp(self._history.largest), self._largest)
        alarming = self._streak == 1 and norm > self.factor * largest and not baselines.has_small_gradient(record)
        self._largest = max(self._largest, norm)
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}"
        severity = Severity.WARNING if alarming else Severity.INFO
        return self.finding(record, severity, norm, usual * self.factor, message)


class GradientGrowth(_AgainstHistory):
    """The gradient norm keeps growing away from its usual level.

    Compared with its usual level:

    - INFO if the norm is above `factor` times that level, and far outside of its spread, for `patience` steps in a row.
    - WARNING if it also keeps rising (`keeps_rising`), is above the highest level of the whole run and not small
      (`Baselines.has_small_gradient`): gradients of a converged run can rise far and still be small.
    - CRITICAL if it is `factor` times the highest level and above all norms before the growth, and the loss is
      `units` above its start or the weights are `grown` times their start. From `alone` times the highest level, and
      `factor` times the largest norm before, a loss that has not fallen is sufficient.

    Slow growth, which is not visible within `window` steps, is compared with the start of the run:

    - CRITICAL if gradients and weights together reach `far` times the start while the loss is `runaway` units above its
      start, or as far below it with weights `grown` times their start. (A loss without a lower bound falls as long as
      the weights grow. A bounded one, such as a negative reward, can fall as far with gradients that grow as much, but
      its weights keep about the same size.)
    - CRITICAL if no loss is known, and gradients and weights together reach `unconfirmed` times the start with weights
      that have grown by half, unless the weights started close to zero.
    - WARNING if the loss is half of `runaway` below its start and the weights have grown, with gradients and weights
      together `factor` times the start and weights that grow geometrically, or with half of this growth and a loss that
      falls faster and faster.

    Args:
        factor: Norm divided by the median of the last `window` steps without growth.
        patience: Number of consecutive steps.
        units: Rise of the loss, in the units of `LossBaseline`.
        grown: Growth of the weights, by `WeightBaseline`.
        alone: Norm divided by the highest level, for a loss less than a tenth of a unit below its start.
        far: Growth since the start, of gradients and weights together (`Baselines.gradient_growth`).
        unconfirmed: The same growth where no loss is known, as in manual optimization.
        runaway: Distance of the loss from its start, in the same units.
        settled: Number of consecutive steps after which a level counts as usual.
        window: Number of steps compared with.
        start: Number of steps before anything is compared.
    """

    sign = "gradient-growth"

    def __init__(
        self,
        factor: float = 10.0,
        patience: int = 3,
        units: float = 1.0,
        grown: float = 3.0,
        alone: float = 1e4,
        far: float = 100.0,
        unconfirmed: float = 1e3,
        runaway: float = 9.0,
        settled: int = 64,
        window: int = 128,
        start: int = 5,
    ) -> None:
        super().__init__(window, start)
        self.factor = factor
        self.patience = patience
        self.units = units
        self.grown = grown
        self.alone = alone
        self.far = far
        self.unconfirmed = unconfirmed
        self.runaway = runaway
        self.settled = settled
        self._calm_for = 0
        self._raised_for = 0
        self._streak = 0
        self._far_streak = 0
        self._highest = -math.inf
        self._largest = 0.0
        self._recent: list[float] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's gradient norm with those before, and check whether loss or weights confirm a growth."""
        norm = record.grad_norm
        assert norm is not None
        baselines = self.baselines(record)
        if not 0 < norm < math.inf:
            return None
        if baselines.loss.jumped:  # by other data or another objective, whose gradients have another level
            self._highest, self._largest = max(self._highest, math.log(norm)), max(self._largest, norm)
        self._compare(norm)
        growth, is_known = baselines.gradient_growth, record.loss is not None
        is_far = growth >= self.far and self._runs_away(baselines) if is_known else self._is_far_alone(baselines)
        self._far_streak = self._far_streak + 1 if is_far else 0
        if self._far_streak >= self.patience:
            loss = "the loss runs away" if is_known else "no loss is known"
            message = f"gradients and weights together are {growth:.3g} times their start, and {loss}"
            return self.finding(record, Severity.CRITICAL, growth, self.far if is_known else self.unconfirmed, message)
        if baselines.loss_rise <= -self.runaway / 2:
            message = self._falling_for_ever(baselines)
            if message:
                return self.finding(record, Severity.WARNING, growth, self.factor, message)
        return self._lasting(record, norm, baselines) if self._streak >= self.patience else None

    def _compare(self, norm: float) -> None:
        """Count the steps of a growth, and add the norm to the history unless it is part of a growth."""
        self._recent = [*self._recent[1 - WINDOW :], norm]
        if self._history.count >= self.start:
            self._highest = max(self._highest, self._history.median)
        logarithm = math.log(norm)
        rise, deviations = self._rise(logarithm)
        growing = rise > math.log(self.factor) and deviations > _FAR_OUT
        self._streak = self._streak + 1 if growing else 0
        self._calm_for = 0 if growing else self._calm_for + 1
        self._raised_for = self._raised_for + 1 if self._calm_for < WINDOW else 0
        if not growing or self._raised_for > self.settled:
            self._history.add(logarithm)
            self._largest = max(self._largest, *self._recent)

    def _lasting(self, record: StepRecord, norm: float, baselines: Baselines) -> Finding:
        """Return a finding of a norm that stays above its usual level."""
        usual = math.exp(self._history.median)
        message = f"the gradient norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}, and stays there"
        severity = Severity.INFO
        is_large = math.log(norm) > self._highest and not baselines.has_small_gradient(record)
        if is_large and keeps_rising(self._recent):
            severity = Severity.WARNING
            rate = math.log(self._recent[-1] / self._recent[0]) / (len(self._recent) - 1)
            message += f"; at this rate it is ten times that in about {step_count(math.log(10) / rate)}"
        if self._is_certain(norm, baselines):
            severity = Severity.CRITICAL
        return self.finding(record, severity, norm, usual * self.factor, message)

    def _runs_away(self, baselines: Baselines) -> bool:
        """Return whether the loss is far above its start, or far below it by weights that have grown."""
        falls = baselines.loss_rise <= -self.runaway and baselines.weights.growth >= self.grown
        return falls or baselines.loss_rise >= self.runaway

    def _is_far_alone(self, baselines: Baselines) -> bool:
        """Return whether gradients and weights have grown so far that no loss needs to confirm it."""
        weights = baselines.weights
        return baselines.gradient_growth >= self.unconfirmed and weights.growth >= MOVED and not weights.in_doubt

    def _falling_for_ever(self, baselines: Baselines) -> str:
        """Return a message if gradients and weights grow while the loss falls without a lower bound, else nothing."""
        growth, weights = baselines.gradient_growth, baselines.weights
        if weights.growth < MOVED:
            return ""
        if growth >= self.factor and baselines.weight_rate.is_geometric:
            left = step_count(baselines.weight_rate.steps_until(_LOST_WEIGHTS))
            return (
                f"the loss falls without a lower bound, and the weights grow: they are {weights.growth:.3g} times "
                f"their start, and at this rate {_LOST_WEIGHTS:g} times in about {left}"
            )
        if growth >= self.factor / 2 and baselines.loss_trend.falls_faster:
            return f"the loss falls ever faster; gradients and weights together are {growth:.3g} times their start"
        return ""

    def _is_certain(self, norm: float, baselines: Baselines) -> bool:
        """Return whether the norm is above all levels before, and loss or weights confirm the growth."""
        rise = math.log(norm) - self._highest
        if baselines.loss_rise >= self.units or baselines.weights.growth >= self.grown:
            return rise > math.log(self.factor) and norm > self._largest
        stands_out = rise > math.log(self.alone) and norm > self.factor * self._largest
        return stands_out and baselines.loss_rise > -0.1
