"""One part of the evidence for a cause."""

from __future__ import annotations

from typing import NamedTuple


class Indication(NamedTuple):
    """One part of the evidence for a cause.

    Args:
        confidence: Its contribution to the confidence of the cause.
        sentence: The measurement, with numbers.
    """

    confidence: float
    sentence: str
