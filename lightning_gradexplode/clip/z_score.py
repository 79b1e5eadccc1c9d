"""Clipping of norms that are far above their moving average."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode import checks
from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.state import Stateful


class ZScoreClip(Stateful, ClipPolicy):
    """Clip norms far above their moving average, in standard deviations (ZClip's adaptive scaling, Kumar et al. 2025).

    With the score ``s = (norm - mean) / deviation`` above `limit`, the norm is clipped to ``mean + limit * deviation /
    (s / limit)``: the larger the score, the closer to the mean. The averages are updated with the clipped norm.

    Unlike in the published rule, non-finite norms are ignored, the variance is computed about the mean before the
    step, a deviation of zero does not make every norm an outlier, and an outlier in the warm-up counts as at most ten
    times the median. During the warm-up nothing is clipped.

    Args:
        limit: Score above which a norm is clipped, in standard deviations.
        decay: Decay of the moving averages per step.
        warmup: Number of steps whose norms initialize the averages.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, limit: float = 2.5, decay: float = 0.97, warmup: int = 25) -> None:
        self.limit = checks.number("limit", limit)
        self.decay = checks.number("decay", decay, 1.0)
        self.warmup = checks.count("warmup", warmup, 2)
        self._first: list[float] = []
        self._mean = 0.0
        self._variance = 0.0

    def threshold(self, record: StepRecord) -> float | None:
        """Return the value that an outlier is clipped to; for any other norm, the limit above which it would be one."""
        norm = record.grad_norm
        usable = norm is not None and math.isfinite(norm) and norm > 0
        if len(self._first) < self.warmup:
            if usable and norm is not None:
                self._begin(norm)
            return None
        deviation = self._deviation()
        edge = self._mean + self.limit * deviation
        if norm is None or not usable:
            return edge
        score = (norm - self._mean) / deviation
        clipped = self._mean + self.limit * deviation / (score / self.limit) if score > self.limit else edge
        self._update(min(norm, clipped))
        return clipped

    def threshold_on_device(self, norm: Tensor) -> Tensor | None:
        """Return the threshold, unless a subclass has one of its own."""
        if type(self).threshold is not ZScoreClip.threshold:
            return None
        if len(self._first) < self.warmup:
            return torch.full_like(norm, math.inf)
        deviation = self._deviation()
        score = (norm - self._mean) / deviation
        clipped = self._mean + self.limit**2 * deviation / score
        return torch.where(score > self.limit, clipped, self._mean + self.limit * deviation)

    def _deviation(self) -> float:
        return max(math.sqrt(self._variance), 0.01 * self._mean, sys.float_info.min)  # the mean may underflow

    def _begin(self, norm: float) -> None:
        self._first.append(norm)
        if len(self._first) == self.warmup:
            norms = np.minimum(self._first, 10 * np.median(self._first))
            self._mean, self._variance = float(norms.mean()), float(norms.var())

    def _update(self, norm: float) -> None:
        difference = norm - self._mean
        self._mean += (1 - self.decay) * difference
        self._variance = self.decay * (self._variance + (1 - self.decay) * difference * difference)
