"""One part of the evidence for a cause."""

from __future__ import annotations

from typing import NamedTuple


class Indication(NamedTuple):
    """One part of the evidence for a cause.

    Args:
        confidence: What it adds to the confidence of the cause.
        sentence: What was measured, with numbers.
    """

    confidence: float
    sentence: str
