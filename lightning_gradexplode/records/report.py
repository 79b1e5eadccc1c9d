"""What was written about a run that explodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What was written about a run that explodes, for those who show it.

    Args:
        step: The step at which it was written.
        folder: Where all its files lie.
        page: The page to be read in a browser, one file that needs no other; None if there is none.
        diagnosis: What happened, where it began, since when, why, and what to do, in markdown.
        picture: The heat map of the gradient norms, layer by step, as a PNG file; empty if there is none.
    """

    step: int
    folder: Path
    page: Path | None = None
    diagnosis: str = ""
    picture: bytes = b""
