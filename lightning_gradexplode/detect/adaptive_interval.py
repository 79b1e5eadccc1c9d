"""When the weights are worth a look: often where something moves, seldom where nothing does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import StepRecord


class AdaptiveInterval:
    """Decides at which steps the norms of the weights are measured, which costs a fourth of a gradient clip.

    They are measured at the first step; then after gaps that double up to `longest`, as long as their norm stays within
    `change` of what it was, and at the very next step when it does not; and at every step whose loss or gradient norm
    is not finite or above the usual, so that what a wild step did to the weights is known at once.

    Args:
        longest: The longest gap in steps; in a calm run the weights cost a thirtieth of a clip.
        change: Relative change of the norm since the last look that ends the calm.
        window: Number of steps that the usual loss and gradient norm are taken from.
    """

    def __init__(self, longest: int = 8, change: float = 0.05, window: int = 32) -> None:
        self.longest = longest
        self.change = change
        self._gap = 1
        self._wait = 0
        self._last: float | None = None
        self._norms = RollingQuantiles(window)
        self._losses = RollingQuantiles(window)

    @property
    def knows_nothing(self) -> bool:
        """Whether the weights were never measured, so that their start has to be."""
        return self._last is None

    @property
    def overdue(self) -> bool:
        """Whether the weights are to be measured after the coming step, whatever it is like."""
        return self._wait <= 1

    def missed(self) -> None:
        """Look at the weights after the next step, since it is too late for this one."""
        self._wait = 0

    def due(self, record: StepRecord) -> bool:
        """Tell whether the weights are to be measured after this step; to be asked once a step, before it."""
        self._wait -= 1
        norm, loss = record.grad_norm, record.loss
        wild_norm = norm is not None and norm != 0 and _is_unusual(self._norms, _logarithm(norm), math.log(2.0))
        wild_loss = loss is not None and _is_unusual(self._losses, loss, 0.0)
        return wild_norm or wild_loss or self._wait <= 0

    def saw(self, norm: float) -> None:
        """Note the weights' norm, and choose the gap to the next look."""
        if not math.isfinite(norm):
            return
        calm = self._last is not None and abs(norm - self._last) <= self.change * self._last
        self._gap = min(2 * self._gap, self.longest) if calm else 1
        self._wait = self._gap
        self._last = norm

    def state_dict(self) -> dict[str, Any]:
        """Give what later looks depend on, in plain values."""
        return {
            "gap": self._gap,
            "wait": self._wait,
            "last": self._last,
            "norms": self._norms.state_dict(),
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._gap, self._wait, self._last = state["gap"], state["wait"], state["last"]
        self._norms.load_state_dict(state["norms"])
        self._losses.load_state_dict(state["losses"])


def _logarithm(norm: float) -> float:
    return math.log(norm) if math.isfinite(norm) else norm


def _is_unusual(history: RollingQuantiles, value: float, least: float) -> bool:
    """Tell whether a value is not finite, or above the usual by four deviations and `least`; and remember it."""
    if not math.isfinite(value):
        return True
    unusual = len(history) >= 8 and value - history.median > max(4 * history.spread, least)
    history.add(value)
    return unusual
