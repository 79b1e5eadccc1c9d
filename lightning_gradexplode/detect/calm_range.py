"""The range of loss and gradient norm within which a step shows no rise, so that its evaluation can wait."""

from __future__ import annotations

import math


class CalmRange:
    """The largest loss and the largest gradient norm of usual steps.

    Both are the smaller maximum of the last two blocks of steps. So each of the first steps of a rise is outside, and
    so are the steps at a new level, until it has lasted for at least one block.

    Args:
        size: Number of steps of a block.
    """

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self._count = 0
        self._block = self._before = -math.inf, -math.inf
        self._loss = self._norm = -math.inf

    def contains(self, loss: float | None, norm: float | None) -> bool:
        """Return whether the loss and the gradient norm of a step are within the range, and record them."""
        if loss is None or norm is None or not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        is_calm = loss <= self._loss and norm <= self._norm
        highest, largest = self._block
        if loss > highest or norm > largest:
            self._block = max(loss, highest), max(norm, largest)
        self._count += 1
        if self._count == self.size:
            self._loss, self._norm = map(min, self._block, self._before)
            self._before, self._block, self._count = self._block, (-math.inf, -math.inf), 0
        return is_calm
