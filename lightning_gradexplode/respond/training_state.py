"""One training state, held in host memory or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lightning_gradexplode.respond import snapshot


def stored(state: snapshot.State, folder: Path | None) -> snapshot.State | IO[bytes]:
    """Write a state to a temporary file, and return the open file; without a folder, return the state itself.

    Where the file system allows it, the file has no name in the folder, so that a process that is killed leaves nothing
    behind.
    """
    if folder is None:
        return state
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder, prefix="state-")  # noqa: SIM115 (closed when the state is dropped)
    try:
        torch.save(state, file)
    except BaseException:
        file.close()
        raise
    return file


@dataclass(slots=True, eq=False)
class TrainingState:
    """A training state, and the number of healthy steps after it.

    Args:
        step: The step after which it was copied, -1 for the start of a run.
        content: What `snapshot.take` returned, or the open file that holds it.
        healthy_steps: Number of healthy steps since then.
    """

    step: int
    content: snapshot.State | IO[bytes]
    healthy_steps: int = 0

    def read(self) -> snapshot.State:
        """Return what `snapshot.take` returned."""
        if isinstance(self.content, dict):
            return self.content
        self.content.seek(0)
        state: snapshot.State = torch.load(self.content, weights_only=True)
        return state

    @property
    def is_sharded(self) -> bool:
        """Whether it holds only the part of the parameters that is on this process."""
        return bool(self.read()["is_sharded"])

    def close(self) -> None:
        """Remove its file, if it has one."""
        if not isinstance(self.content, dict):
            self.content.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain values."""
        return {"step": self.step, "healthy": self.healthy_steps, "state": self.read()}

    @classmethod
    def from_state_dict(cls, plain: Mapping[str, Any], folder: Path | None) -> TrainingState:
        """Build a state from what `state_dict` returned; it is kept in a file if there is a folder."""
        return cls(int(plain["step"]), stored(plain["state"], folder), int(plain["healthy"]))
