"""Symptoms that the training loss shows: the article's plain signs 1, 2 and 3."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.history import RobustWindow
from lightning_gradexplode.records import Finding, Severity, StepRecord


class NonFiniteLoss(Detector):
    """The loss is NaN or infinite: the article's sign 3.

    Critical at once, since the backward pass makes every gradient non-finite. Under a gradient scaler that adapts,
    such a step is skipped and may pass: a warning, and critical when it has not passed after `patience` steps.

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

    The loss's rise is measured from the median of its first steps, in units of its size there, or of its range there,
    or of its usual change from step to step, whichever is largest, so that a noisy loss around zero or below it is
    judged as well. More than `limit` units for `patience` steps in a row is critical; a loss that swings back in
    between is not.

    Args:
        limit: Units of rise that count; with a positive loss 4 means five times the start.
        patience: Steps in a row.
        start: Number of first steps that the start is taken from.
    """

    sign = "diverging-loss"
    reads = ("loss",)

    def __init__(self, limit: float = 4.0, patience: int = 3, start: int = 5) -> None:
        self.limit = limit
        self.patience = patience
        self._start = RobustWindow(start)
        self._changes = RobustWindow(100)
        self._last: float | None = None
        self._streak = 0

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the step's loss against the run's start."""
        assert record.loss is not None
        if not math.isfinite(record.loss):
            return None
        rise = self._rise(record.loss)
        if rise <= self.limit and len(self._start) < self._start.size:
            self._start.add(record.loss)
        self._note_change(record.loss, rise)
        self._streak = self._streak + 1 if rise > self.limit else 0
        if self._streak < self.patience:
            return None
        level = self._start.median
        message = (
            f"the loss is {record.loss:.4g}, it started at {level:.4g} and has been above its limit for "
            f"{self._streak} steps"
        )
        return self.finding(record, Severity.CRITICAL, record.loss, level + self.limit * self._unit(), message)

    def _note_change(self, loss: float, rise: float) -> None:
        if rise <= self.limit and self._last is not None:
            self._changes.add(min(abs(loss - self._last), 1e300))
        self._last = loss

    def _noise(self) -> float:
        """The median change from step to step: unlike the spread of the losses, it does not follow a steady rise."""
        return self._changes.median if len(self._changes) else 0.0

    def _unit(self) -> float:
        start_range = self._start.largest - self._start.quantile(0.0)
        return max(abs(self._start.median), start_range, 2 * self._noise(), 1e-30)

    def _rise(self, loss: float) -> float:
        return (loss - self._start.median) / self._unit() if len(self._start) else 0.0


class UnstableLoss(Detector):
    """The loss makes large jumps from update to update: the article's sign 2.

    A jump is a change of the loss that is more than `limit` times the median change of the last `window` steps, and
    more than a tenth of the loss's usual size; `jumps` of them within the last ten steps are a warning.

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
        self._changes = RobustWindow(window)
        self._losses = RobustWindow(window)
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

    Args:
        window: Number of steps at the start and now.
        least: Share by which the loss has to have come down.
    """

    sign = "stalled-loss"
    reads = ("loss",)

    def __init__(self, window: int = 100, least: float = 0.01) -> None:
        self.least = least
        self._start = RobustWindow(window)
        self._recent = RobustWindow(window)

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
