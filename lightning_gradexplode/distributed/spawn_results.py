"""Findings of processes that a trainer has started (``ddp_spawn``), returned to the process that called ``fit``."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path

from lightning_gradexplode.records import Finding


class SpawnResults:
    """A file through which a started process returns findings to the process that started it.

    The path is known to both, since it is pickled with the monitor. The file exists from the end of a spawned run until
    the findings are taken; if nobody takes them, it is deleted with this object, at the latest when its process exits.
    """

    def __init__(self) -> None:
        self._name = f"gradexplode-{uuid.uuid4().hex}.json"
        self._owner = os.getpid()
        weakref.finalize(self, _delete, self.path, os.getpid())  # not in pickled copies, which have no __init__

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(tempfile.gettempdir()) / self._name

    def leave(self, findings: Sequence[Finding]) -> None:
        """Write the findings; earlier ones are replaced."""
        self.path.write_text(json.dumps([finding.as_dict() for finding in findings]), encoding="utf-8")

    def take(self) -> list[Finding] | None:
        """Return the findings and delete the file; None if there is none, and in any process but the first."""
        if os.getpid() != self._owner or not self.path.exists():
            return None
        findings = [Finding.from_dict(plain) for plain in json.loads(self.path.read_text(encoding="utf-8"))]
        self.path.unlink()
        return findings


def _delete(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process inherits the finalizer
        path.unlink(missing_ok=True)
