"""The selection of the events that are logged, of many of the same kind."""

from __future__ import annotations

from collections import Counter

SHOWN = 3
"""Number of events of a kind that are all logged."""


class Repeats:
    """Counts events by kind: the first three of a kind are logged, then the 10th, the 100th and so on.

    Example:
        >>> repeats = Repeats()
        >>> [number for number in range(1, 200) if repeats.is_due("skip")]
        [1, 2, 3, 10, 100]
        >>> repeats.note("skip")
        ' (number 199 of this kind)'
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def is_due(self, kind: str, shown: int = SHOWN) -> bool:
        """Count an event, and return whether it is logged.

        Args:
            kind: The kind of the event.
            shown: Number of events of that kind that are all logged.
        """
        self._counts[kind] += 1
        count = self._counts[kind]
        return count <= shown or str(count).strip("0") == "1"

    def note(self, kind: str) -> str:
        """Return a note with the number of a logged event; empty for the first three."""
        count = self._counts[kind]
        return f" (number {count} of this kind)" if count > SHOWN else ""
