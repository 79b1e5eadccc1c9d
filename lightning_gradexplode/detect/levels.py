"""Where a run started: the level of its loss and of its weights, that witnesses of an explosion are measured by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_gradexplode.detect.rolling_quantiles import RollingQuantiles
from lightning_gradexplode.records import FloatArray, StepRecord

MOVED = 1.5
"""Growth of the weights from which they have moved, and losses are no longer those of the start."""


class WeightLevel:
    """How many times larger than at the start the weights are, by their norm.

    The start is the norm before the first step. Weights that start next to zero, as those of a new last layer may, have
    a long way to go in a good cause: their growth is measured from an average size of `usual` instead, and is in doubt.

    Args:
        usual: Root mean square of weights that is small for a start; that of GPT-2 is 0.02.
    """

    def __init__(self, usual: float = 0.01) -> None:
        self.usual = usual
        self._first: float | None = None
        self._level = 0.0
        self._last = 0.0
        self._starts: list[float] = []
        self._moved = False

    def note(self, record: StepRecord) -> None:
        """Note a step's weights, if they were measured."""
        norm = record.weight_norm
        if self._first is None:
            before = norm if record.weight_norm_before is None else record.weight_norm_before
            if before is None or not math.isfinite(before):
                return
            self._first = self._last = before
            self._level = max(before, self.usual * math.sqrt(record.weight_count or 0))
            starts = record.per_parameter.get("weight_norm_before", record.per_parameter.get("weight_norm"))
            self._starts = [] if starts is None else starts.tolist()
        if norm is not None and math.isfinite(norm):
            self._last = norm
            self._moved = self._moved or self.growth > MOVED or self._most_have_moved(record)

    def growth_each(self, record: StepRecord) -> FloatArray:
        """Give the growth of each parameter; one that started next to zero is compared with the others' mean.

        Returns:
            Shape ``(parameters,)``, or ``(0,)`` where it is not known.
        """
        norms = record.per_parameter.get("weight_norm", np.empty(0))
        if len(norms) != len(self._starts) or not len(norms):
            return np.empty(0)
        starts = np.asarray(self._starts)
        growth: FloatArray = norms / np.maximum(starts, max(0.1 * float(np.mean(starts)), 1e-30))
        return growth

    def _most_have_moved(self, record: StepRecord) -> bool:
        growth = self.growth_each(record)
        return len(growth) > 0 and bool(np.median(growth) > MOVED)

    @property
    def moved(self) -> bool:
        """Whether the weights, or half of the parameters, have ever been `MOVED` times as large as at the start."""
        return self._moved

    @property
    def growth(self) -> float:
        """The last norm measured over that of the start; 1 as long as there is none to compare with."""
        return self._last / self._level if self._level > 0 else 1.0

    @property
    def start(self) -> float:
        """What the growth is measured from."""
        return self._level

    @property
    def in_doubt(self) -> bool:
        """Whether the weights started next to zero."""
        return self._first is None or self._first < self._level or self._level <= 0

    def state_dict(self) -> dict[str, Any]:
        """Give the start and the last norm."""
        return {
            "first": self._first,
            "level": self._level,
            "last": self._last,
            "starts": list(self._starts),
            "moved": self._moved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._first, self._level, self._last = state["first"], state["level"], state["last"]
        self._starts, self._moved = list(state["starts"]), state["moved"]


class LossLevel:
    """How far the loss is from where it started, in units that fit a loss of any size and sign.

    The start is the median of the first losses, as long as the weights have not `MOVED` yet, but of three at least. The
    unit is the size of that median, or the range of these losses, or twice the median change from step to step, or the
    change that one in ten exceeds, whichever is largest: a noisy loss around zero has small values and a large unit.

    Args:
        first: Number of losses that the start is taken from, at most.
        outside: Units of rise from which a loss is none of the start's any more, however early.
    """

    def __init__(self, first: int = 5, outside: float = 4.0) -> None:
        self.outside = outside
        self._start = RollingQuantiles(first)
        self._changes = RollingQuantiles(100)
        self._last: float | None = None
        self._level = 0.0
        self._size = 0.0
        self._unit = 1e-30

    def rise(self, loss: float | None) -> float:
        """Give the units that a loss is above the start, negative below it; 0 if it is not known or not finite."""
        if loss is None or not math.isfinite(loss) or not len(self._start):
            return 0.0
        return (loss - self._level) / self._unit

    def note(self, loss: float | None, moved: bool) -> None:
        """Note a step's loss.

        Args:
            loss: The loss.
            moved: Whether the weights have moved away from their start.
        """
        if loss is None or not math.isfinite(loss):
            return
        if self.rise(loss) <= self.outside and (not moved or len(self._start) < 3):
            if len(self._start) < self._start.size:
                self._start.add(loss)
                self._settle()
            if self._last is not None:
                self._changes.add(min(abs(loss - self._last), 1e300))
            self._unit = max(self._size, self._noise(), 1e-30)
        self._last = loss

    def _settle(self) -> None:
        """Take the level from the first losses, and how large they are or how far apart."""
        self._level = self._start.median
        self._size = max(abs(self._level), self._start.largest - self._start.quantile(0.0))

    def _noise(self) -> float:
        """A large change from step to step: unlike the spread of the losses, it does not follow a steady rise."""
        if not len(self._changes):
            return 0.0
        return max(2 * self._changes.median, self._changes.quantile(0.9) if len(self._changes) >= 5 else 0.0)

    @property
    def is_known(self) -> bool:
        """Whether there were losses enough to tell their noise."""
        return len(self._start) >= 3

    @property
    def start(self) -> float:
        """The level of the first losses."""
        return self._level

    def above(self, units: float) -> float:
        """Give the loss that is so many units above the start."""
        return self._level + units * self._unit

    def state_dict(self) -> dict[str, Any]:
        """Give the start and the noise."""
        return {
            "start": self._start.state_dict(),
            "changes": self._changes.state_dict(),
            "last": self._last,
            "level": self._level,
            "unit": self._unit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._start.load_state_dict(state["start"])
        self._changes.load_state_dict(state["changes"])
        self._last, self._level, self._unit = state["last"], state["level"], state["unit"]
        if len(self._start):
            self._settle()
