"""Clipping that reduces the gradients at nearly every step."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import Finding, Severity, StepRecord


class ClipSaturated(Detector):
    """Clipping reduces the gradients at nearly every step by a large factor, which hides a problem.

    A WARNING if nine in ten of the last `window` steps were clipped by more than `factor`. Clipping is intended for
    single steps; usual thresholds lie between half and ten times the usual norm (Pascanu, Mikolov, Bengio 2013, section
    3.2).

    Args:
        factor: Norm of the gradients divided by the clip value; for clipping by value, the largest element.
        window: Number of steps.
    """

    sign = "clip-saturated"
    reads = ("grad_norm", "clip_val")

    def __init__(self, factor: float = 1000.0, window: int = 50) -> None:
        self.factor = factor
        self._excess = RollingQuantiles(window)

    def check(self, record: StepRecord) -> Finding | None:
        """Compare the size of the step's gradients with the clip value."""
        size = record.grad_norm if record.clip_algorithm == "norm" else record.grad_max
        if not record.clip_val or size is None or not 0 < size < math.inf:
            return None
        self._excess.add(math.log(size) - math.log(record.clip_val))
        if len(self._excess) < self._excess.size or self._excess.quantile(0.1) <= math.log(self.factor):
            return None
        usual = math.exp(min(self._excess.median, 700.0))
        message = f"clipping to {record.clip_val:.3g} makes nearly every gradient smaller, usually {usual:.3g} times"
        return self.finding(record, Severity.WARNING, usual, self.factor, message)
