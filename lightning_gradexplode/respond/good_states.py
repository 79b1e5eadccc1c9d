"""A bounded ring of training states, each known to be good by what came after it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_gradexplode.records import Severity
from lightning_gradexplode.respond import snapshot
from lightning_gradexplode.respond.base import ResponseContext


@dataclass(slots=True, eq=False)
class Kept:
    """One state.

    Args:
        step: The step after which it was taken, -1 for the start of the fit.
        state: What `snapshot.take` gave, or the file it is in.
        healthy: Number of healthy steps that came after it.
    """

    step: int
    state: dict[str, Any] | Path
    healthy: int = 0


class GoodStates:
    """Takes a state every so many healthy steps, and calls it good once so many further steps were healthy too.

    An explosion begins before it is seen: what was taken within `margin` healthy steps before an alarm is dropped.
    Steps with a warning count neither as healthy nor as an explosion. The state at the start of the fit counts as good
    at once, for there is none before it.

    At most ``keep + ceil(margin / every_n_steps)`` states are held, each as large as a checkpoint.

    Args:
        every_n_steps: Healthy steps from one state to the next.
        margin: Healthy steps after which a state is good.
        keep: Good states that are kept, the latest ones.
        folder: Where the states are kept as files; None keeps them in host memory.
    """

    def __init__(self, every_n_steps: int, margin: int, keep: int, folder: Path | None) -> None:
        self.every_n_steps = every_n_steps
        self.margin = margin
        self.keep = keep
        self.folder = folder
        self._good: list[Kept] = []
        self._pending: list[Kept] = []
        self._since = 0

    def __len__(self) -> int:
        return len(self._good)

    def start(self, run: ResponseContext) -> None:
        """Forget all, and take the state at the start of a fit."""
        self.clear()
        self._good = [self._taken(run)]

    def batch_ended(self, run: ResponseContext) -> bool:
        """Look back at a batch: take a state if one is due, and tell whether one has just become good."""
        if run.severity >= Severity.CRITICAL:
            self.drop_pending()
            return False
        if run.severity >= Severity.WARNING:
            return False
        for kept in self._pending:
            kept.healthy += 1
        self._since += 1
        if self._since >= self.every_n_steps:
            self._since = 0
            self._pending.append(self._taken(run))
        if not self._pending or self._pending[0].healthy < self.margin:
            return False
        self._good.append(self._pending.pop(0))
        for old in self._good[: -self.keep]:
            self._remove(old)
        self._good = self._good[-self.keep :]
        return True

    @property
    def step(self) -> int:
        """The step of the last good state."""
        return self._good[-1].step

    def put_back(self, run: ResponseContext) -> None:
        """Put back the last good state, and drop those that are not known to be good."""
        state = self._good[-1].state
        snapshot.put_back(run, torch.load(state, weights_only=False) if isinstance(state, Path) else state)
        self.drop_pending()

    def drop_latest(self) -> None:
        """Drop the last good state if there is an older one."""
        if len(self._good) > 1:
            self._remove(self._good.pop())

    def drop_pending(self) -> None:
        """Drop the states that are not known to be good."""
        for kept in self._pending:
            self._remove(kept)
        self._pending = []
        self._since = 0

    def clear(self) -> None:
        """Drop all states."""
        self.drop_pending()
        for kept in self._good:
            self._remove(kept)
        self._good = []

    def _taken(self, run: ResponseContext) -> Kept:
        state = snapshot.take(run)
        if self.folder is None:
            return Kept(run.step, state)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"state-rank{run.trainer.global_rank}-step{run.step}-"
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=name, suffix=".pt", delete=False) as file:
            torch.save(state, file)
        return Kept(run.step, Path(file.name))

    @staticmethod
    def _remove(kept: Kept) -> None:
        if isinstance(kept.state, Path):
            kept.state.unlink(missing_ok=True)
