"""The last training states, each known to be good by what came after it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lightning_gradexplode.records import Severity
from lightning_gradexplode.respond import snapshot
from lightning_gradexplode.respond.base import ResponseContext


@dataclass(slots=True, eq=False)
class TrainingState:
    """One state.

    Args:
        step: The step after which it was taken, -1 for the start of a run.
        state: What `snapshot.take` returned, or the open file that holds it.
        healthy: Number of healthy steps that came after it.
    """

    step: int
    state: snapshot.State | IO[bytes]
    healthy: int = 0

    def read(self) -> snapshot.State:
        """Return the state."""
        if isinstance(self.state, dict):
            return self.state
        self.state.seek(0)
        read: snapshot.State = torch.load(self.state, weights_only=True)
        return read


class GoodStates:
    """Keeps a state every `every_n_steps` healthy steps; it counts as good after `margin` further healthy steps.

    An explosion begins before it is found: what was taken within `margin` healthy steps before a critical finding is
    dropped. Steps with a warning count neither as healthy nor as an explosion. The state at the start of a run is good
    at once, since there is none before it; the one that a resumed fit starts with is not.

    At most ``keep + ceil(margin / every_n_steps)`` states are held, each as large as a checkpoint. Files have no name
    in the folder (where the file system allows it), so that nothing is left behind by a process that is killed.

    Args:
        every_n_steps: Number of healthy steps from one state to the next.
        margin: Number of healthy steps after which a state is good.
        keep: Number of good states that are kept, the latest ones.
        folder: Where the states are kept as files; None keeps them in host memory.
        in_checkpoint: Whether `state_dict` holds the states.
    """

    def __init__(
        self, every_n_steps: int, margin: int, keep: int, folder: Path | None = None, in_checkpoint: bool = True
    ) -> None:
        self.every_n_steps = every_n_steps
        self.margin = margin
        self.keep = keep
        self.folder = folder
        self.in_checkpoint = in_checkpoint
        self._good: list[TrainingState] = []
        self._pending: list[TrainingState] = []
        self._since = 0

    def start(self, run: ResponseContext) -> None:
        """Drop all, and take the state at the start of a fit."""
        self.clear()
        if not snapshot.can_take(run):
            self._since = self.every_n_steps - 1  # after the first batch lazy modules have their shapes
            return
        taken = self._taken(run)
        if taken is not None:
            (self._pending if run.is_resumed else self._good).append(taken)

    def batch_ended(self, run: ResponseContext) -> bool:
        """Copy a state if one is due, and return whether one has just become good."""
        if run.severity >= Severity.CRITICAL:
            self.drop_pending()
            return False
        if run.severity >= Severity.WARNING:
            return False
        for state in self._pending:
            state.healthy += 1
        self._since += 1
        if self._since >= self.every_n_steps:
            self._since = 0
            taken = self._taken(run)
            self._pending += [] if taken is None else [taken]
        if not self._pending or self._pending[0].healthy < self.margin:
            return False
        self._good.append(self._pending.pop(0))
        for old in self._good[: -self.keep]:
            _close(old)
        self._good = self._good[-self.keep :]
        return True

    @property
    def step(self) -> int:
        """The step of the last good state."""
        return self._good[-1].step

    @property
    def name(self) -> str:
        """A description of the last good state."""
        return "at the start of the fit" if not self._good or self.step < 0 else f"after step {self.step}"

    def find(self, run: ResponseContext) -> bool:
        """Drop the good states that do not fit the run as it is now; return whether there is one. A collective call."""
        while self._good:
            reason = snapshot.misfit(run, self._good[-1].read())
            if not any(misfit for (misfit,) in run.on_all_processes(reason is not None)):
                return True
            why = reason or "it does not fit on another process"
            run.log_action("drop-state", f"the state after step {self.step} is dropped: {why}")
            self._remove_latest()
        return False

    def restore(self, run: ResponseContext) -> list[str]:
        """Restore the last good state, and drop those that are not known to be good.

        Returns:
            What could not be restored.
        """
        kept = snapshot.restore(run, self._good[-1].read())
        self.drop_pending()
        return kept

    def drop_latest(self) -> None:
        """Drop the last good state if there is an older one."""
        if len(self._good) > 1:
            self._remove_latest()

    def drop_pending(self) -> None:
        """Drop the states that are not known to be good."""
        for state in self._pending:
            _close(state)
        self._pending = []
        self._since = 0

    def clear(self) -> None:
        """Drop all states."""
        self.drop_pending()
        while self._good:
            self._remove_latest()

    def state_dict(self) -> dict[str, Any]:
        """Return all states, or none where each process holds a part of them only."""
        if not self.in_checkpoint or any(_is_part(one) for one in [*self._good, *self._pending]):
            return {}
        states = {
            name: [{"step": one.step, "healthy": one.healthy, "state": one.read()} for one in states]
            for name, states in (("good", self._good), ("pending", self._pending))
        }
        return {"since": self._since, **states}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what `state_dict` returned, if it holds states."""
        if not state:
            return []
        good, pending = ([self._kept(one) for one in state[name]] for name in ("good", "pending"))
        self.clear()
        self._good, self._pending, self._since = good, pending, int(state["since"])
        return []

    def _remove_latest(self) -> None:
        _close(self._good.pop())

    def _taken(self, run: ResponseContext) -> TrainingState | None:
        """Return the state of the run; None if it cannot be kept, on any process."""
        taken, problem = None, ""
        try:
            taken = TrainingState(run.step, self._stored(snapshot.take(run)))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if all(kept for (kept,) in run.on_all_processes(taken is not None)):
            return taken
        if taken is not None:
            _close(taken)
        run.log_action("keep-state", f"no state can be kept: {problem or 'another process has failed'}", once=True)
        return None

    def _kept(self, plain: Mapping[str, Any]) -> TrainingState:
        return TrainingState(int(plain["step"]), self._stored(plain["state"]), int(plain["healthy"]))

    def _stored(self, state: snapshot.State) -> snapshot.State | IO[bytes]:
        if self.folder is None:
            return state
        self.folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self.folder, prefix="state-")  # noqa: SIM115 (closed when it is dropped)
        try:
            torch.save(state, file)
        except BaseException:
            file.close()
            raise
        return file


def _is_part(one: TrainingState) -> bool:
    return bool(one.read()["is_sharded"])


def _close(one: TrainingState) -> None:
    if not isinstance(one.state, dict):
        one.state.close()
