"""Symptoms in the training loss, among them the article's signs 1 and 2."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import FAR, Baselines
from lightning_gradexplode.detect.growth import WINDOW, keeps_rising
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.detect.weight_baseline import MOVED
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.records.text import step_count

_LOST = 10.0
"""Multiple of the start to which the loss is projected, as one plus its rise in the units of `LossBaseline`."""

_FAR = 1000.0
"""Number of steps from which a projection is not reported."""

_SUPPORTED = 2.0
"""Growth of gradients and weights together from which a rise of the loss is projected."""

_GROWN = 10.0
"""Growth of gradients and weights together from which a jump of the loss does not come from the batch alone."""


class DivergingLoss(Detector):
    """The loss has risen above its starting region and stays there: the article's sign 2, in its final stage.

    The rise above the start is measured in the units of `LossBaseline`: for a positive loss with little noise, one unit
    is the loss at the start. Jumps that no update can have caused (`UpdateEffect`), such as by other data or another
    objective, are not included: the level after such a jump replaces the start.

    CRITICAL if the loss is `limit` units above the start for `patience` steps without decreasing, and one of these
    confirms it:

    - The weights have changed. Since they do in any run that learns, and a sum over longer and longer sequences rises
      as well, they must have grown during the rise if it takes more than `sudden` steps.
    - The product of gradient and weight norm (`Baselines.gradient_growth`) is `confirmed` times that of the start for
      `patience` steps, and the loss rises by the same factor at each step or faster (`Excursion.is_geometric`). (A loss
      that starts at zero rises to its level without a growth of the gradients; the logarithm of one with a growing
      weight, or of a periodic one, rises more and more slowly.)
    - Both the rise of the loss and that product are `baselines.FAR` for `patience` steps, as after a first update that
      ruins the network at once, whatever becomes of the weights.

    A single step is sufficient if the weights have grown to `ruined` times what they were when the loss was last at its
    start, which a single bad batch does not cause.

    WARNING if the loss is more than one unit above its start for `patience` steps, keeps rising by the same factor or
    faster, and the weights have changed or `Baselines.gradient_growth` is at least two. A rise of any size is a WARNING
    if gradients and weights grow with it (`JointGrowth`).

    Args:
        limit: Units of rise; with a positive loss 4 means five times the start.
        patience: Number of consecutive steps; two more as long as the weights have not changed.
        confirmed: Growth of the gradients that confirms a rise.
        ruined: Growth of the weights for which a single step is sufficient, at twice the limit.
        sudden: Number of steps since the loss was last at its start up to which weights that have ever changed confirm
            its rise; later they must have grown to `weight_baseline.MOVED` times what they were then.
        wander: Standard deviations of a random walk (`LossBaseline.deviations`) that the loss must also be above the
            start, since a loss that wanders around zero has no other scale.
    """

    sign = "diverging-loss"
    reads = ("loss",)
    locates_growth = True

    def __init__(
        self,
        limit: float = 4.0,
        patience: int = 3,
        confirmed: float = 10.0,
        ruined: float = 3.0,
        sudden: int = 32,
        wander: float = 4.0,
    ) -> None:
        self.limit = limit
        self.patience = patience
        self.confirmed = confirmed
        self.ruined = ruined
        self.sudden = sudden
        self.wander = wander
        self._out: list[float] = []
        self._rises: list[float] = []
        self._grown_for = self._far_for = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's loss with the run's start."""
        loss = record.loss
        assert loss is not None
        baselines = self.baselines(record)
        if not math.isfinite(loss):
            return None
        rise, weights = baselines.loss_rise, baselines.weights
        self._rises = [*self._rises[1 - WINDOW :], rise]
        patience = self.patience if weights.moved else self.patience + 2
        self._out = [*self._out[-1 - self.patience :], loss] if rise > self.limit else []
        self._grown_for = self._grown_for + 1 if baselines.gradient_growth >= self.confirmed else 0
        self._far_for = self._far_for + 1 if min(rise, baselines.gradient_growth) >= FAR else 0
        if rise > 2 * self.limit and baselines.excursion.growth_of(weights.growth) >= self.ruined:
            return self._critical(record, baselines)
        lasting = len(self._out) >= patience and self._out[-1] >= self._out[-patience]
        if lasting and baselines.loss_deviations > self.wander and self._is_confirmed(baselines):
            return self._critical(record, baselines)
        found = self._projection(record, baselines) if min(self._rises[-self.patience :]) > 1 else None
        return found or self._joint_growth(record, baselines)

    def _is_confirmed(self, baselines: Baselines) -> bool:
        """Return whether weights or gradients confirm that the loss diverges."""
        weights, excursion = baselines.weights, baselines.excursion
        if excursion.steps <= self.sudden:
            weights_confirm = weights.moved
        else:
            weights_confirm = excursion.growth_of(weights.growth) >= MOVED
        is_far = self._far_for >= self.patience
        return weights_confirm or is_far or (self._grown_for >= self.patience and excursion.is_geometric)

    def _critical(self, record: StepRecord, baselines: Baselines) -> Finding:
        loss, start, grown = record.loss, baselines.loss.start, baselines.weights.growth
        assert loss is not None
        weights = f"; the weights are {grown:.3g} times as large as at the start" if grown >= MOVED else ""
        before = "before the rise it was" if baselines.loss.shift else "its first values were"
        message = f"the loss is {loss:.4g}, {before} about {start:.4g}{weights}"
        return self.finding(record, Severity.CRITICAL, loss, baselines.loss.above(self.limit), message)

    def _joint_growth(self, record: StepRecord, baselines: Baselines) -> Finding | None:
        """Return a WARNING if loss, gradients and weights grow together."""
        rates = baselines.joint_growth.rates()
        if rates is None:
            return None
        loss, gradients, weights = (f"{100 * math.expm1(rate):.2g} %" for rate in rates)
        start = baselines.loss.start
        message = (
            f"the loss is {record.loss:.4g}, at first about {start:.4g}; loss, gradients and weights grow together, by "
            f"{loss}, {gradients} and {weights} per step"
        )
        return self._projected(record, message, rates[0], start)

    def _projection(self, record: StepRecord, baselines: Baselines) -> Finding | None:
        """Return a WARNING if the loss keeps rising, with the number of steps until it is `_LOST` times its start."""
        if baselines.loss_deviations <= self.wander or not baselines.excursion.is_geometric:
            return None
        if not baselines.weights.moved and baselines.gradient_growth < _SUPPORTED:
            return None
        if keeps_rising(self._rises):
            sizes = [1 + max(rise, 0.0) for rise in self._rises[-WINDOW // 2 :]]
            rate = math.log(sizes[-1] / sizes[0]) / (len(sizes) - 1)
        elif baselines.loss_trend.rises:
            rate = baselines.loss_trend.rate
        else:
            return None
        message = f"the loss keeps rising: it is {record.loss:.4g}, at first about {baselines.loss.start:.4g}"
        return self._projected(record, message, rate, baselines.loss.above(1))

    def _projected(self, record: StepRecord, message: str, rate: float, limit: float) -> Finding:
        """Return a WARNING with the number of steps until the loss is `_LOST` times its start, at a rate of growth."""
        assert record.loss is not None
        left = math.log(_LOST / (1 + self._rises[-1])) / rate if rate > 0 else math.inf
        if 0 < left < _FAR:
            message += f"; at this rate the loss is {_LOST:g} times its start in about {step_count(left)}"
        return self.finding(record, Severity.WARNING, record.loss, limit, message)


class UnstableLoss(Detector):
    """The loss makes large jumps from update to update: the article's sign 2.

    A jump is a change of the loss that is more than `limit` times the median change of the last `window` steps, and
    more than a tenth of the usual size of the loss. INFO if there are `jumps` of them within the last ten steps;
    WARNING if also the loss is more than one unit of `LossBaseline` above its start, the weights are
    `weight_baseline.MOVED` times their start, and `Baselines.gradient_growth` is at least ten.

    Args:
        limit: Size of a jump divided by the median change.
        jumps: Number of jumps in ten steps.
        window: Number of changes that the median is taken of.
    """

    sign = "unstable-loss"
    reads = ("loss",)

    def __init__(self, limit: float = 10.0, jumps: int = 3, window: int = 100) -> None:
        self.limit = limit
        self.jumps = jumps
        self._changes = RollingQuantiles(window)
        self._losses = RollingQuantiles(window)
        self._last: float | None = None
        self._recent: list[bool] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the change of the loss since the last step with those before."""
        baselines = self.baselines(record)
        assert record.loss is not None
        if not math.isfinite(record.loss):
            return None
        last, self._last = self._last, record.loss
        if last is None:
            return None
        change = abs(record.loss - last)
        if not math.isfinite(change):
            return None
        limit = math.inf
        if self._changes.count >= 20:
            limit = max(self.limit * self._changes.median, 0.1 * abs(self._losses.median))
        jumped = change > limit
        self._recent = [*self._recent[-9:], jumped]
        if not jumped:
            self._changes.add(change)
            self._losses.add(record.loss)
        if not jumped or sum(self._recent) < self.jumps:
            return None
        grown = baselines.weights.growth >= MOVED and baselines.gradient_growth >= _GROWN
        severity = Severity.WARNING if grown and baselines.loss_rise > 1 else Severity.INFO
        message = f"the loss jumped by {change:.3g}, and at {sum(self._recent) - 1} of the nine steps before"
        return self.finding(record, severity, change, limit, message)


class StalledLoss(Detector):
    """The loss does not decrease from its start: the article's sign 1.

    INFO if the median of the last `window` losses is not below the median of the first ones by more than `least` of
    the size of the loss. Never a higher severity, since adversarial, converged and fine-tuning runs look the
    same. Possible causes are a learning rate that is too low, and a network that does not learn. Follows SageMaker
    Debugger's rule LossNotDecreasing (0.1 % over 10 steps), with a longer window for noisy losses.

    Args:
        window: Number of steps at the start, and of the last steps.
        least: Share of its size by which the loss must have decreased.
    """

    sign = "stalled-loss"
    reads = ("loss",)

    def __init__(self, window: int = 100, least: float = 0.01) -> None:
        self.least = least
        self._start = RollingQuantiles(window)
        self._recent = RollingQuantiles(window)

    def check(self, record: StepRecord) -> Finding | None:
        """Check the level of the last losses."""
        assert record.loss is not None
        if not math.isfinite(record.loss):
            return None
        if self._start.count < self._start.size:
            self._start.add(record.loss)
            return None
        self._recent.add(record.loss)
        if self._recent.count < self._recent.size:
            return None
        start, now = self._start.median, self._recent.median
        limit = start - self.least * abs(start)
        if now <= limit:
            return None
        message = f"the median loss is {now:.4g} at step {record.step}, that of the first ones was {start:.4g}"
        return self.finding(record, Severity.INFO, now, limit, message)
