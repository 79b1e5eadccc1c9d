"""Symptoms that the training loss shows: the article's plain signs 1, 2 and 3."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import MOVED, Baselines
from lightning_gradexplode.detect.growth import WINDOW, keeps_rising
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import Finding, Severity, StepRecord

_LOST = 10.0
"""Times the start to which the loss is projected; its size counts in units of `LossBaseline` where it is not
positive."""

_FAR = 1000.0
"""Projections further ahead are left out."""

_GROWN = 10.0
"""Growth of gradients and weights together from which a jump of the loss is no matter of the batch alone."""


class NonFiniteLoss(Detector):
    """The loss is NaN or infinite: the article's sign 3.

    CRITICAL at once, also if its gradients are finite: those of the logarithm of a negative number are, and no less
    wrong. A WARNING if the update cannot reach the weights, since all gradients are exactly zero, as those of a mean
    over no label are, or finite with a learning rate of zero. Under a gradient scaler that adapts, the step is skipped
    and may pass: a WARNING, and CRITICAL when it has not passed after `patience` steps. A scale of 65536 comes down to
    1 by 16 halvings, hence the 20.

    Args:
        patience: Steps in a row that an adapting gradient scaler is given.
    """

    sign = "nonfinite-loss"
    reads = ("loss",)

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Check for a loss that is not finite."""
        assert record.loss is not None
        if math.isfinite(record.loss):
            self._streak = 0
            return None
        self._streak += 1
        rank = "" if record.rank is None else f" of rank {record.rank}"
        message = f"the loss is {record.loss:g} at batch {record.batch_idx}{rank}"
        is_harmless = False
        if record.grad_norm == 0:
            is_harmless, message = True, f"{message}; all gradients are exactly zero, so that it reaches no weight"
        elif record.learning_rate == 0 and record.grad_norm is not None and math.isfinite(record.grad_norm):
            is_harmless, message = True, f"{message}; the learning rate is zero, so that it reaches no weight"
        passing = is_harmless or (record.scale_adapts and self._streak <= self.patience)
        severity = Severity.WARNING if passing else Severity.CRITICAL
        return self.finding(record, severity, record.loss, math.inf, message)


class DivergingLoss(Detector):
    """The loss has left the region where it started, and stays out: the article's sign 2, at its end.

    The rise over the start is measured in the units of `LossBaseline`: with a positive loss that is not noisy, one unit
    is the loss at the start. CRITICAL is a loss that has been `limit` units above it for `patience` steps without
    coming down, if the gradients or the weights confirm it: their product (`Baselines.gradient_growth`) has been
    `confirmed` times that of the start for `patience` steps, or the weights have moved; or if the rise itself is
    `confirmed` times what it was a few steps before, and keeps rising. A change of the task makes the loss jump, but
    then it falls; a loss that starts at zero finds its level without a growth of the gradients. A single step is enough
    if the weights have grown to `ruined` times their start: a bad batch makes a single loss, and leaves the weights.

    Args:
        limit: Units of rise; with a positive loss 4 means five times the start.
        patience: Steps in a row; two more as long as the weights have not moved.
        confirmed: Growth of the gradients, or of the rise within `growth.WINDOW` steps, with which a rise counts.
        ruined: Growth of the weights with which a single step counts, at twice the limit.
        wander: Standard deviations of a random walk (`LossBaseline.deviations`) that the loss has to be above the start
            as well: one that wanders around zero has no other size to be compared with.
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
        wander: float = 4.0,
    ) -> None:
        self.limit = limit
        self.patience = patience
        self.confirmed = confirmed
        self.ruined = ruined
        self.wander = wander
        self._out: list[float] = []
        self._rises: list[float] = []
        self._grown_for = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the step's loss with the run's start."""
        loss = record.loss
        assert loss is not None
        baselines = self.baselines(record)
        if not math.isfinite(loss):
            return None
        self._rises = [*self._rises[1 - WINDOW :], baselines.loss_rise]
        patience = self.patience if baselines.weights.moved else self.patience + 2
        self._out = [*self._out[-1 - self.patience :], loss] if baselines.loss_rise > self.limit else []
        grown = baselines.weights.growth
        lasting = len(self._out) >= patience and self._out[-1] >= self._out[-patience]
        lasting = lasting and baselines.loss_deviations > self.wander
        by_itself = self._rises[-1] > self.confirmed * max(self._rises[0], 1.0) and keeps_rising(self._rises)
        self._grown_for = self._grown_for + 1 if baselines.gradient_growth >= self.confirmed else 0
        found = lasting and (by_itself or baselines.weights.moved or self._grown_for >= self.patience)
        if not found and not (grown >= self.ruined and baselines.loss_rise > 2 * self.limit):
            return self._projection(record, baselines)
        weights = f", with weights {grown:.3g} times as large" if grown >= MOVED else ""
        message = f"the loss is {loss:.4g}, its first values were about {baselines.loss.start:.4g}{weights}"
        return self.finding(record, Severity.CRITICAL, loss, baselines.loss.above(self.limit), message)

    def _projection(self, record: StepRecord, baselines: Baselines) -> Finding | None:
        """Return a WARNING if the loss keeps rising from twice its start on, with the step at which it is lost."""
        if min(self._rises[-self.patience :]) <= 1 or baselines.loss_deviations <= self.wander:
            return None
        if not baselines.confirm(2.0):
            return None
        if keeps_rising(self._rises):
            sizes = [1 + max(rise, 0.0) for rise in self._rises[-WINDOW // 2 :]]
            rate = math.log(sizes[-1] / sizes[0]) / (len(sizes) - 1)
        elif baselines.loss_trend.rises:
            rate = baselines.loss_trend.rate
        else:
            return None
        assert record.loss is not None
        steps = math.log(_LOST / (1 + self._rises[-1])) / rate if rate > 0 else math.inf
        message = f"the loss keeps rising: it is {record.loss:.4g}, at first about {baselines.loss.start:.4g}"
        if 0 < steps < _FAR:
            message += f"; at this rate it is {_LOST:g} times its start in about {steps:.0f} steps"
        return self.finding(record, Severity.WARNING, record.loss, baselines.loss.above(1), message)


class UnstableLoss(Detector):
    """The loss makes large jumps from update to update: the article's sign 2.

    A jump is a change of the loss that is more than `limit` times the median change of the last `window` steps, and
    more than a tenth of the loss's usual size. `jumps` of them within the last ten steps are worth knowing, and a
    WARNING if the loss is more than one unit of `LossBaseline` above its start, the weights are `baselines.MOVED` times
    theirs, and gradients and weights together (`Baselines.gradient_growth`) ten times theirs.

    Args:
        limit: How many times the median change a jump is.
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
        message = f"the loss jumped by {change:.3g}, as at {sum(self._recent) - 1} of the nine steps before"
        return self.finding(record, severity, change, limit, message)


class StalledLoss(Detector):
    """The loss does not come down from where it started: the article's sign 1.

    The median of the last `window` losses is compared with that of the first ones: not below it by more than `least` of
    the loss's size is worth knowing, and no more: adversarial, converged and fine-tuning runs look alike. It may be a
    learning rate too low, or a network in which nothing is learned. After SageMaker Debugger's rule LossNotDecreasing
    (0.1 % over 10 steps), with a longer window for noisy losses.

    Args:
        window: Number of steps at the start and now.
        least: Share by which the loss has to have come down.
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
        message = f"the median loss is {now:.4g} after {record.step + 1} steps, that of the first ones {start:.4g}"
        return self.finding(record, Severity.INFO, now, limit, message)
