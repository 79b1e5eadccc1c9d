"""Findings: a sign at a step, with its severity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lightning_gradexplode.records.html import table
from lightning_gradexplode.records.text import plain_text

NONFINITE_SIGNS = ("nonfinite-loss", "nonfinite-gradient", "nonfinite-weight")
"""Signs of a value that is not finite, in the order in which a step computes them."""

MAX_CHARACTERS = 1000
"""Length of the text of a finding; longer ones are cut."""


class Severity(IntEnum):
    """Severity of a finding. Its value is logged as ``gradexplode/severity``, where 0 means no finding."""

    INFO = 1
    """Worth knowing; never sends an alert."""
    WARNING = 2
    """May be the start of an explosion."""
    CRITICAL = 3
    """The run is exploding or lost, and will not recover by itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign at a step.

    Args:
        step: The step at which other metrics are logged too: number of batches with an optimizer step before it.
        sign: Name of the sign, for example ``"gradient-growth"``.
        severity: Its severity.
        where: Name of the parameter or module that has the sign, None if it is the whole run.
        value: The measured value, in the unit of the detector.
        limit: The limit that the value is compared with, NaN if there is none.
        message: A description in one sentence.
    """

    step: int
    sign: str
    severity: Severity
    where: str | None
    value: float
    limit: float
    message: str

    def __str__(self) -> str:
        """Return the finding in one line of plain text, without control characters and of at most 1000 characters."""
        where = f" in {self.where}" if self.where else ""
        limit = f" (limit {self.limit:.4g})" if math.isfinite(self.limit) and self.limit else ""
        text = plain_text(f"{self.severity.name} at step {self.step}: {self.sign}{where}: {self.message}{limit}")
        return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."

    def _repr_html_(self) -> str:
        title = f"{self.severity.name}: {plain_text(self.sign)}"
        rows = [("step", str(self.step)), ("where", self.where or ""), ("message", self.message)]
        numbers = [("value", f"{self.value:.4g}"), ("limit", f"{self.limit:.4g}")]
        return table(title, [(name, plain_text(text)) for name, text in (*rows, *numbers) if text])

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a plain dictionary, the severity by its name."""
        return {
            "step": self.step,
            "sign": self.sign,
            "severity": self.severity.name,
            "where": self.where,
            "value": self.value,
            "limit": self.limit,
            "message": self.message,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """Build a finding from what `as_dict` returned."""
        return cls(**{**plain, "severity": Severity[plain["severity"]]})
