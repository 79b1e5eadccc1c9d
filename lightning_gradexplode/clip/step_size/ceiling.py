"""An upper limit of the step size, set after steps of about that size have failed."""

from __future__ import annotations

from lightning_gradexplode.records.state import Stateful

_SHARE = 0.5
"""The ceiling after a failure, divided by the step size before it."""

_RISE = 1.01
"""Factor of the ceiling at a step with progress; its logarithm is halved with each failure."""

_STALL = 30
"""Number of steps after which progress is evaluated: if the loss should have decreased and has not, the ceiling is
halved."""

_NEGLIGIBLE = 0.1
"""If these steps would reduce a linear loss by less than this share of a clear change, they are too small for visible
progress, and the ceiling is doubled."""


class Ceiling(Stateful):
    """The largest step size after failures, infinite before the first one.

    It rises while training makes progress, or while steps are too small for visible progress, so that the effect of a
    failure is not permanent. It rises more slowly after each further failure, so that a size that fails is not retried
    often.
    """

    _size: float | None
    _level: float | None

    def __init__(self) -> None:
        self._size = None
        self._failures = 0
        self._steps = 0
        self._level = None
        self._planned = 0.0

    @property
    def is_set(self) -> bool:
        """Whether there is a ceiling."""
        return self._size is not None

    @property
    def size(self) -> float:
        """The largest step size."""
        return float("inf") if self._size is None else self._size

    def lower(self, good: float) -> None:
        """Set the ceiling after a failure.

        Args:
            good: The step size before it.
        """
        self.limit_to(_SHARE * good)

    def limit_to(self, size: float) -> None:
        """Set the ceiling after a rollback, below a size that has failed."""
        self._failures += 1
        self._size = min(size, self.size)

    def restart(self, level: float) -> None:
        """Measure progress from the present loss, after the recovery from a failure."""
        self._steps, self._level, self._planned = 0, level, 0.0

    def follow(self, level: float, planned: float, clear_change: float) -> None:
        """Raise the ceiling if the loss has decreased, and halve it if it has not for `_STALL` steps.

        Args:
            level: The loss, as a median over many steps.
            planned: Decrease of the loss by the last step if the loss were linear.
            clear_change: The smallest change of the loss that is not noise.
        """
        if self._size is None:
            return
        before = level if self._level is None else self._level
        self._steps += 1
        self._planned += planned
        if self._steps >= _STALL:
            if self._planned < _NEGLIGIBLE * clear_change:
                self._size *= 2.0
            elif level > before and self._planned >= clear_change:
                self._size *= 0.5
            self.restart(level)
        elif level < before:
            self._size *= _RISE ** (0.5 ** (self._failures - 1))
