"""One training state, held in host memory or in a file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from lightning_gradexplode.respond import snapshot

MOST_LOSSES = 5
"""Number of losses after a state was copied that those after it was restored are compared with."""


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
        losses: The first finite losses of healthy steps after it was copied, at most `MOST_LOSSES`.
    """

    step: int
    content: snapshot.State | IO[bytes]
    healthy_steps: int = 0
    losses: list[float] = field(default_factory=list)

    def add_loss(self, loss: float | None) -> None:
        """Keep a loss if it is one of the first, and finite."""
        if loss is not None and math.isfinite(loss) and len(self.losses) < MOST_LOSSES:
            self.losses.append(loss)

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
        return {"step": self.step, "healthy": self.healthy_steps, "losses": [*self.losses], "state": self.read()}

    @classmethod
    def from_state_dict(cls, plain: Mapping[str, Any], folder: Path | None) -> TrainingState:
        """Build a state from what `state_dict` returned; it is kept in a file if there is a folder."""
        losses = [float(loss) for loss in plain.get("losses", ())]
        return cls(int(plain["step"]), stored(plain["state"], folder), int(plain["healthy"]), losses)
