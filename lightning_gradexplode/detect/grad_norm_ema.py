"""The usual gradient norm of each parameter, as an exponential moving average."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.records.state import Stateful


class GradNormEMA(Stateful):
    """The usual gradient norm of each parameter: a moving average of its logarithm over calm steps.

    Args:
        decay: Weight of the past at each step; 0.97 averages over about 33 steps.
    """

    not_saved = ("_complete",)

    def __init__(self, decay: float = 0.97) -> None:
        self.decay = decay
        self._levels: FloatArray = np.zeros(0)
        self._complete = False

    def rises(self, norms: FloatArray) -> FloatArray:
        """Return the natural logarithm of each norm over its usual level.

        Returns:
            Shape ``(parameters,)``; NaN for a norm that is zero or NaN, and where no level is known yet.
        """
        if len(self._levels) != len(norms):
            return np.full_like(norms, np.nan)
        rises: FloatArray = _logarithms(norms) - self._levels
        return rises

    def update(self, norms: FloatArray) -> None:
        """Add a calm step's norms; zero, NaN and infinite ones are ignored."""
        if len(self._levels) != len(norms):
            self._levels, self._complete = np.full_like(norms, np.nan), False
        if self._complete and norms.min() > 0.0 and norms.max() < math.inf:  # as nearly always
            self._levels += (1 - self.decay) * (np.log(norms) - self._levels)
            return
        logs = _logarithms(norms)
        moved = np.where(np.isnan(self._levels), logs, self._levels + (1 - self.decay) * (logs - self._levels))
        self._levels = np.where(np.isfinite(logs), moved, self._levels)
        self._complete = len(norms) > 0 and bool(np.isfinite(self._levels).all())


def _logarithms(norms: FloatArray) -> FloatArray:
    """Return natural logarithms, NaN for norms of zero or NaN."""
    if norms.min(initial=1.0) > 0.0:  # as nearly always; a NaN is no minimum
        return np.log(norms)
    return np.log(norms, out=np.full_like(norms, np.nan), where=norms > 0)
