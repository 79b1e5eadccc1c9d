"""What an operation of a replay has done wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["undefined", "empty", "overflow", "alignment"]


@dataclass(frozen=True, slots=True)
class Fault:
    """The kind of an operation's fault.

    Args:
        kind: ``"undefined"`` for an operation outside of its domain or without a slope, ``"empty"`` for a reduction
            over nothing or one element, ``"overflow"`` for a result beyond the number format, ``"alignment"`` for a
            CTC loss whose target does not fit its input.
        sentence: What the operation did, with numbers.
        remedy: How its line is put right.
    """

    kind: FaultKind
    sentence: str
    remedy: str
