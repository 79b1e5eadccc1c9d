"""An upper limit of the step size, set after steps of about that size have failed."""

from __future__ import annotations

from lightning_gradexplode.records.state import Stateful

_SHARE = 0.5
"""The ceiling over the size that was good before the failure."""

_RISE = 1.01
"""Factor of the ceiling at a step with progress; its logarithm is halved with each failure."""

_STALL = 30
"""Steps after which training is looked at: without progress since then, the ceiling is halved."""


class Ceiling(Stateful):
    """The largest step size after failures, infinite before the first one.

    It rises while training makes progress below it, so that a failure is not for ever, and more slowly after each
    further one, so that a size that fails is not tried again and again.
    """

    _size: float | None
    _level: float | None

    def __init__(self) -> None:
        self._size = None
        self._failures = 0
        self._steps = 0
        self._level = None

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
        self._failures += 1
        self._size = min(_SHARE * good, self.size)

    def restart(self, level: float) -> None:
        """Compare with the loss as it is now, after a failure has been recovered from."""
        self._steps, self._level = 0, level

    def follow(self, level: float) -> None:
        """Raise the ceiling if the loss has come down, and halve it if that is not so for many steps.

        Args:
            level: The loss, as a median over many steps.
        """
        if self._size is None:
            return
        before = level if self._level is None else self._level
        self._steps += 1
        if self._steps >= _STALL:
            if level > before:
                self._size *= 0.5
            self._level, self._steps = level, 0
        elif level < before:
            self._size *= _RISE ** (0.5 ** (self._failures - 1))
