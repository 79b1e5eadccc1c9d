"""Limits of a response: its number of actions, and the number of steps between two of them."""

from __future__ import annotations

from typing import Any

from lightning_gradexplode import checks
from lightning_gradexplode.records.state import Stateful


class RateLimit(Stateful):
    """Counts the actions of a response in a fit.

    Args:
        most: Maximum number of actions; None for no limit.
        cooldown: Minimum number of steps from one action to the next.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.
    """

    _last: int | None

    def __init__(self, most: Any, cooldown: Any = 0) -> None:
        self.most = checks.limit("most", most)
        self.cooldown = checks.count("cooldown", cooldown)
        self._used = 0
        self._last = None

    @property
    def used(self) -> int:
        """Number of actions so far."""
        return self._used

    @property
    def is_used_up(self) -> bool:
        """Whether the maximum number of actions is reached."""
        return self.most is not None and self._used >= self.most

    def cools_down(self, step: int) -> bool:
        """Return whether the last action was less than `cooldown` steps ago."""
        return self._last is not None and self._last <= step < self._last + self.cooldown

    def use(self, step: int) -> None:
        """Count an action."""
        self._used += 1
        self._last = step

    def reset(self) -> None:
        """Begin a fit."""
        self._used, self._last = 0, None

    def __str__(self) -> str:
        """Return the number of actions, and the maximum if there is one."""
        return f"{self._used}" if self.most is None else f"{self._used} of {self.most}"
