"""What a process tells the others in the exchange of a step besides its numbers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple


class Note(NamedTuple):
    """What a process tells the others in the exchange of a step, sent as one number.

    Bit 0 of the number is `measures_modules`; bit ``1 + i`` is set if the detector of the ``i``-th sign is off. The
    signs are the same on all processes, in the same order.

    Args:
        measures_modules: Whether the process measures error gradients of modules, which takes a collective.
        off: Signs of the detectors that are off.
    """

    measures_modules: bool
    off: frozenset[str]

    def number(self, signs: Sequence[str]) -> int:
        """Return the note as a number.

        Args:
            signs: The signs of all detectors, in an order that all processes have.
        """
        return self.measures_modules + sum(2 << place for place, sign in enumerate(signs) if sign in self.off)

    @classmethod
    def of_all(cls, numbers: Sequence[int], signs: Sequence[str]) -> Note:
        """Return what holds after the notes of all processes: what each measures, and what is off on any of them.

        Args:
            numbers: The note of each process.
            signs: As in `number`.
        """
        together = functools.reduce(operator.or_, numbers)
        off = (sign for place, sign in enumerate(signs) if together & 2 << place)
        return cls(all(number & 1 for number in numbers), frozenset(off))
