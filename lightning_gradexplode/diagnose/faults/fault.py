"""The fault of an operation of a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["undefined", "empty", "overflow", "alignment"]


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault of an operation with a non-finite or unbounded result.

    Args:
        kind: ``"undefined"`` for an operation outside of its domain or without a finite derivative, ``"empty"`` for a
            reduction over no elements or one, ``"overflow"`` for a result beyond the number format, ``"alignment"``
            for a CTC loss whose target does not fit its input.
        sentence: A description of the operation, with numbers.
        remedy: The correction of its line.
    """

    kind: FaultKind
    sentence: str
    remedy: str
