"""Symptoms that the training loss shows: the article's plain signs 1, 2 and 3."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import MOVED, Baselines
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import Finding, Severity, StepRecord


class NonFiniteLoss(Detector):
    """The loss is NaN or infinite: the article's sign 3.

    Critical at once, since the backward pass makes every gradient non-finite. Under a gradient scaler that adapts,
    such a step is skipped and may pass: a warning, and critical when it has not passed after `patience` steps. A scale
    of 65536 comes down to 1 by 16 halvings, hence the 20. First to tell of 11 of the zoo's 124 (`default_detectors`).

    Args:
        patience: Steps in a row that an adapting gradient scaler is given.
    """

    sign = "nonfinite-loss"
    reads = ("loss",)

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's loss."""
        assert record.loss is not None
        if math.isfinite(record.loss):
            self._streak = 0
            return None
        self._streak += 1
        passing = record.scale_adapts and self._streak <= self.patience
        severity = Severity.WARNING if passing else Severity.CRITICAL
        rank = "" if record.rank is None else f" of rank {record.rank}"
        message = f"the loss is {record.loss:g} at batch {record.batch_idx}{rank}"
        return self.finding(record, severity, record.loss, math.inf, message)


class DivergingLoss(Detector):
    """The loss has left the region where it started, and stays out: the article's sign 2, at its end.

    The rise over the start is measured in the units of `LossBaseline`: with a positive loss that is not noisy, one unit
    is the loss at the start. Critical are

    - `patience` steps in a row more than `limit` units above the start, two more if there were no losses before to tell
      their noise, one less if the weights have moved, or a single one if they have grown to `ruined` times their start:
      a bad batch makes a single loss, and leaves the weights;
    - `early_patience` steps in a row more than `early` units above it, the last one no better than the first, if the
      weights or the gradient norm bear witness: moved, or ten times as large as at the start. A change of the task
      makes the loss jump, but then it falls; a large learning rate may make it rise for a while, but not that far.

    The limits were chosen on the tuning half of the zoo, where this is the first to tell of 51 of 124 explosions; the
    zoo's own probe calls a run lost whose loss stays above ten times its start for five steps.

    Args:
        limit: Units of rise that count; with a positive loss 9 means ten times the start.
        patience: Steps in a row.
        ruined: Growth of the weights with which one such step is enough.
        early: Units of rise that count with a witness.
        early_patience: Steps in a row.
    """

    sign = "diverging-loss"
    reads = ("loss",)
    locates_growth = True

    def __init__(
        self, limit: float = 9.0, patience: int = 3, ruined: float = 3.0, early: float = 4.0, early_patience: int = 3
    ) -> None:
        self.limit = limit
        self.patience = patience
        self.ruined = ruined
        self.early = early
        self.early_patience = early_patience
        self._norms = RollingQuantiles(5)
        self._far = 0
        self._out: list[float] = []

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's loss against the run's start."""
        loss = record.loss
        assert loss is not None
        if not math.isfinite(loss):
            return None
        baselines = self.baselines(record)
        rise = baselines.loss_rise
        self._far = self._far + 1 if rise > self.limit else 0
        self._out = [*self._out[1 - self.early_patience :], loss] if rise > self.early else []
        grown = baselines.weights.growth
        found = self._far >= self._enough(baselines)
        limit = self.limit if found else self.early
        if len(self._out) == self.early_patience and self._out[-1] >= self._out[0]:
            found = found or baselines.weights.moved or self._norm_confirms(record.grad_norm)
        self._note_norm(record.grad_norm)
        if not found:
            return None
        witness = f", with weights {grown:.3g} times as large" if grown >= MOVED else ""
        message = f"the loss is {loss:.4g}, it started at {baselines.loss.start:.4g}{witness}"
        return self.finding(record, Severity.CRITICAL, loss, baselines.loss.above(limit), message)

    def _enough(self, baselines: Baselines) -> int:
        """Give the number of steps above the limit that leave no doubt."""
        if baselines.weights.growth >= self.ruined:
            return 1
        if baselines.weights.moved:
            return self.patience - 1
        return self.patience if baselines.loss.is_known else self.patience + 2

    def _note_norm(self, norm: float | None) -> None:
        if norm is not None and math.isfinite(norm) and len(self._norms) < self._norms.size:
            self._norms.add(norm)

    def _norm_confirms(self, norm: float | None) -> bool:
        return norm is not None and len(self._norms) > 0 and not norm <= 10 * self._norms.median


class UnstableLoss(Detector):
    """The loss makes large jumps from update to update: the article's sign 2.

    A jump is a change of the loss that is more than `limit` times the median change of the last `window` steps, and
    more than a tenth of the loss's usual size; `jumps` of them within the last ten steps are a warning. The constants
    are by judgement, and were not fitted to anything.

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
        """Judge the change of the loss since the last step."""
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
        if len(self._changes) >= 20:
            limit = max(self.limit * self._changes.median, 0.1 * abs(self._losses.median))
        jumped = change > limit
        self._recent = [*self._recent[-9:], jumped]
        if not jumped:
            self._changes.add(change)
            self._losses.add(record.loss)
        if not jumped or sum(self._recent) < self.jumps:
            return None
        message = f"the loss jumped by {change:.3g}, for the {sum(self._recent)}. time in ten steps"
        return self.finding(record, Severity.WARNING, change, limit, message)


class StalledLoss(Detector):
    """The loss does not come down from where it started: the article's sign 1.

    The median of the last `window` losses is compared with that of the first ones: not below it by more than `least` of
    the loss's size is a warning. It may be a learning rate too low, or a network in which nothing is learned any more.
    After SageMaker Debugger's rule LossNotDecreasing (0.1 % over 10 steps), with a longer window for noisy losses; the
    constants are by judgement.

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
        """Judge the level of the last losses."""
        assert record.loss is not None
        if not math.isfinite(record.loss):
            return None
        if len(self._start) < self._start.size:
            self._start.add(record.loss)
            return None
        self._recent.add(record.loss)
        if len(self._recent) < self._recent.size:
            return None
        start, now = self._start.median, self._recent.median
        limit = start - self.least * abs(start)
        if now <= limit:
            return None
        message = f"the loss is {now:.4g} after {record.step + 1} steps, it started at {start:.4g}"
        return self.finding(record, Severity.WARNING, now, limit, message)
