"""Findings: one symptom, seen at one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from lightning_gradexplode.records.html import table
from lightning_gradexplode.records.text import plain_text


class Severity(IntEnum):
    """How bad a finding is; the value is what ``gradexplode/severity`` logs (0 stands for no finding)."""

    INFO = 1
    """Worth knowing."""
    WARNING = 2
    """A sign of explosion that may pass."""
    CRITICAL = 3
    """The run is exploding or lost: left alone, it will not recover."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One symptom, seen at one step.

    Args:
        step: The step that other metrics are logged at: batches that stepped, from 0.
        sign: Name of the symptom, for example ``"gradient-growth"``.
        severity: How bad it is.
        where: Name of the parameter or module it was seen in, None if it belongs to the whole run.
        value: The number that was judged.
        limit: The number it was judged against.
        message: One sentence for people.
    """

    step: int
    sign: str
    severity: Severity
    where: str | None
    value: float
    limit: float
    message: str

    def __str__(self) -> str:
        """Return the finding in one line of plain text, without control characters."""
        where = f" in {self.where}" if self.where else ""
        limit = f" (limit {self.limit:.4g})" if math.isfinite(self.limit) and self.limit else ""
        return plain_text(f"{self.severity.name} at step {self.step}: {self.sign}{where}: {self.message}{limit}")

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
