"""The losses before and after a state is restored: whether that is of use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.records.state import Stateful

_LEAST = 3
"""Least number of losses after a state was copied that later ones are compared with."""


def fits(at_copy: Sequence[float], restored: Sequence[float], failed: float) -> bool:
    """Return whether the losses after a state was restored are like those after it was copied.

    The weights are the same, so that other losses come from other data or another objective, to which a rollback is no
    remedy. A restored state that is better than the one that failed is worth keeping in any case.

    Args:
        at_copy: The first losses after the state was copied.
        restored: The first losses after it was restored.
        failed: The last loss before it was restored; infinity if unknown.

    Returns:
        False if the lowest restored loss is at least half of the failed one, and above the highest one at the copy by
        its size and by three times their range; True if that is not so, or if there are too few losses.
    """
    if len(at_copy) < _LEAST or not restored or not math.isfinite(failed):
        return True
    least, most = min(at_copy), max(at_copy)
    limit = most + max(abs(most), 3 * (most - least))
    lowest = min(restored)
    return lowest <= limit or lowest < failed - abs(failed) / 2


class RestoredLosses(Stateful):
    """The losses before and after a state was restored."""

    def __init__(self) -> None:
        self._loss = math.inf
        self._at_copy: list[float] = []  # the first losses after the state was copied; empty if nothing is compared
        self._restored: list[float] = []
        self._failed = math.inf

    def add(self, loss: float | None) -> None:
        """Add the loss of a step, None if it is unknown."""
        self._loss = math.inf if loss is None or not math.isfinite(loss) else loss
        if self._at_copy and math.isfinite(self._loss):
            self._restored.append(self._loss)

    def restored(self, at_copy: Sequence[float]) -> bool:
        """Compare the coming losses with the first ones after the restored state was copied.

        Returns:
            Whether enough is known for that.
        """
        self._failed, self._restored = self._loss, []
        self._at_copy = [*at_copy] if len(at_copy) >= _LEAST and math.isfinite(self._failed) else []
        return bool(self._at_copy)

    @property
    def is_judged(self) -> bool:
        """Whether no restored state waits for its losses."""
        return not self._at_copy

    def misfit(self, least: int) -> str:
        """Return why the restored state does not fit the run any more, "" if it fits or too little is known.

        Each restored state is judged once.

        Args:
            least: Number of losses from which on it is judged.
        """
        if not self._at_copy or len(self._restored) < least:
            return ""
        at_copy, self._at_copy = self._at_copy, []
        if fits(at_copy, self._restored, self._failed):
            return ""
        return f"its loss is {min(self._restored):.3g}, and was at most {max(at_copy):.3g} when it was copied"
