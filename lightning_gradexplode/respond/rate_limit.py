"""How often, and how soon again, a response may act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Budget:
    """Counts what a response has done.

    Args:
        most: So many times it may act in a fit; None for any number.
        cooldown: So many steps have to lie between one time and the next.
    """

    def __init__(self, most: int | None, cooldown: int) -> None:
        self.most = most
        self.cooldown = cooldown
        self.used = 0
        self._last: int | None = None

    @property
    def spent(self) -> bool:
        """Whether it may not act any more."""
        return self.most is not None and self.used >= self.most

    def cools_down(self, step: int) -> bool:
        """Tell whether the last time is too short ago."""
        return self._last is not None and self._last <= step < self._last + self.cooldown

    def use(self, step: int) -> None:
        """Note that it acts."""
        self.used += 1
        self._last = step

    def state_dict(self) -> dict[str, Any]:
        """Give the counts."""
        return {"used": self.used, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.used, self._last = state["used"], state["last"]


def checked_count(name: str, value: Any, least: int = 0) -> int:
    """Check a number of steps or times.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} got {value!r}; it takes a whole number of at least {least}")
    if value < least:
        raise ValueError(f"{name} got {value}; it takes a whole number of at least {least}")
    return value


def checked_most(name: str, value: Any) -> int | None:
    """Check a cap: a number of times, or None for any number.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is below 1.
    """
    return None if value is None else checked_count(name, value, 1)


def checked_factor(name: str, value: Any, least: float = 0.0, most: float = 1.0) -> float:
    """Check a number above `least` and of at most `most`.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} got {value!r}; it takes a number above {least:g}, of at most {most:g}")
    if not least < value <= most:
        raise ValueError(f"{name} got {value!r}; it takes a number above {least:g}, of at most {most:g}")
    return float(value)
