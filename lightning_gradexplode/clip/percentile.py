"""Clipping to a low percentile of the norms so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.respond.rate_limit import checked_count, checked_factor


class PercentileClip(ClipPolicy):
    """Clip to a percentile of the norms of the last steps, this one included (AutoClip, Seetharaman et al. 2020).

    With the usual tenth percentile nine steps of ten are clipped: the direction of most steps counts, and not their
    size. Unlike the published rule the history is bounded, and a norm that is not finite never enters it.

    Args:
        percentile: From 0 to 100.
        window: Number of norms remembered.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, percentile: float = 10.0, window: int = 1000) -> None:
        self.percentile = checked_factor("percentile", percentile, most=100.0)
        self._norms = RollingQuantiles(checked_count("window", window, 1))

    def threshold(self, record: StepRecord) -> float | None:
        """Give the percentile."""
        norm = record.grad_norm
        if norm is not None and math.isfinite(norm) and norm > 0:
            self._norms.add(norm)
        return self._norms.quantile(self.percentile / 100) if len(self._norms) else None

    def state_dict(self) -> dict[str, Any]:
        """Give the norms."""
        return {"norms": self._norms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._norms.load_state_dict(state["norms"])
