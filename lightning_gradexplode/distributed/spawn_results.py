"""Findings on their way back from processes that a trainer has started: their monitors are copies of the user's."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from lightning_gradexplode.records import Finding


class SpawnResults:
    """A place on this machine that one process leaves findings in, and the one that started it takes them from.

    It is known to both, since it goes along when the monitor is copied to the other process.
    """

    def __init__(self) -> None:
        self._name = f"gradexplode-{uuid.uuid4().hex}.json"

    @property
    def path(self) -> Path:
        """Where the findings lie."""
        return Path(tempfile.gettempdir()) / self._name

    def leave(self, findings: Sequence[Finding]) -> None:
        """Leave findings; those that were left before are replaced."""
        self.path.write_text(json.dumps([finding.as_dict() for finding in findings]), encoding="utf-8")

    def take(self) -> list[Finding] | None:
        """Take what was left, if anything was."""
        if not self.path.exists():
            return None
        findings = [Finding.from_dict(plain) for plain in json.loads(self.path.read_text(encoding="utf-8"))]
        self.path.unlink()
        return findings
