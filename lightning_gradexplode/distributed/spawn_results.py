"""Results of processes that a trainer has started (``ddp_spawn``), returned to the process that called ``fit``."""

from __future__ import annotations

import os
import pickle
import tempfile
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class SpawnResults:
    """A file through which a started process returns results to the process that started it.

    The path is known to both, since it is pickled with the monitor. The file exists from the end of a spawned run until
    the results are taken; if they are not taken, it is deleted with this object, at the latest when its process exits.
    Only its own user can read and write it.
    """

    def __init__(self) -> None:
        self._name = f"gradexplode-{uuid.uuid4().hex}.pickle"
        self._owner = os.getpid()
        weakref.finalize(self, _delete, self.path, os.getpid())  # not in pickled copies, which have no __init__

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(tempfile.gettempdir()) / self._name

    def leave(self, results: Mapping[str, Any]) -> None:
        """Write the results that can be pickled; earlier ones are replaced.

        Args:
            results: The results by name.
        """
        pickled = {name: data for name, value in results.items() if (data := _pickled(value)) is not None}
        self.path.unlink(missing_ok=True)
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            pickle.dump(pickled, file)

    def take(self) -> dict[str, Any] | None:
        """Return the results and delete the file; None if there is none, and in any process but the first."""
        if os.getpid() != self._owner or not self.path.exists():
            return None
        pickled = pickle.loads(self.path.read_bytes())
        self.path.unlink()
        return {name: value for name, data in pickled.items() if (value := _loaded(data)) is not None}


def _pickled(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value)
    except Exception:  # a part of the user's own may put anything into a record
        return None


def _loaded(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception:
        return None


def _delete(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process inherits the finalizer
        path.unlink(missing_ok=True)
