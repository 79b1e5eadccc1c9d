"""Clipping to a low percentile of the norms so far."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_gradexplode import checks
from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful


class PercentileClip(Stateful, ClipPolicy):
    """Clip to a percentile of the norms of the last steps, including this one (AutoClip, Seetharaman et al. 2020).

    With the usual 10th percentile, nine of ten steps are clipped, so that most steps have the same size. Unlike the
    published rule, the history is bounded, and non-finite norms are ignored.

    Args:
        percentile: Above 0, at most 100.
        window: Number of norms that are kept.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, percentile: float = 10.0, window: int = 1000) -> None:
        self.percentile = checks.number("percentile", percentile, 100.0)
        self._norms = RollingQuantiles(checks.count("window", window, 1))

    def threshold(self, record: StepRecord) -> float | None:
        """Return the percentile."""
        norm = record.grad_norm
        if norm is not None and math.isfinite(norm) and norm > 0:
            self._norms.add(norm)
        return self._norms.quantile(self.percentile / 100) if len(self._norms) else None

    def threshold_on_device(self, norm: Tensor) -> Tensor | None:
        """Return the percentile, unless a subclass has a threshold of its own."""
        if type(self).threshold is not PercentileClip.threshold:
            return None
        low, middle, high, weight = self._norms.around(self.percentile / 100)
        below = norm.clamp(low, middle)
        return below if not weight else below + weight * (norm.clamp(middle, high) - below)
