"""The last training states, each known to be good by the healthy steps that followed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gradexplode.records import Severity
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.respond import snapshot
from lightning_gradexplode.respond.base import ResponseContext
from lightning_gradexplode.respond.training_state import TrainingState, stored


class GoodStates:
    """Copies a state every `every_n_steps` healthy steps; it is good after `margin` further healthy steps.

    An explosion begins before it is found. States that are not known to be good yet are therefore dropped at a critical
    finding. Steps with a warning count neither as healthy nor as an explosion. The state at the start of a run is good
    at once, since there is no earlier one; the one at the start of a resumed fit is not.

    At most ``keep + ceil(margin / every_n_steps)`` states are held, each as large as a checkpoint, and one more between
    a rollback and the steps that show whether it helps.

    Args:
        every_n_steps: Number of healthy steps from one state to the next.
        margin: Number of healthy steps after which a state is good.
        keep: Number of good states that are kept, the latest ones.
        folder: Where the states are kept as files; None keeps them in host memory.
        in_checkpoint: Whether `state_dict` contains the states.
    """

    def __init__(
        self, every_n_steps: int, margin: int, keep: int, folder: Path | None = None, in_checkpoint: bool = True
    ) -> None:
        self.every_n_steps = every_n_steps
        self.margin = margin
        self.keep = keep
        self.folder = folder
        self.in_checkpoint = in_checkpoint
        self._good: list[TrainingState] = []  # oldest first
        self._unproven: list[TrainingState] = []  # oldest first, all later than the good ones
        self._failed: TrainingState | None = None
        self._steps_since_copy = 0

    # Copying states.

    def start(self, run: ResponseContext) -> None:
        """Drop all states, and copy the one at the start of a fit."""
        self.clear()
        if not snapshot.can_take(run):
            self._steps_since_copy = self.every_n_steps - 1  # after the first batch lazy modules have their shapes
            return
        state = self._copy(run)
        if state is not None:
            (self._unproven if run.is_resumed else self._good).append(state)

    def batch_ended(self, run: ResponseContext) -> bool:
        """Count a batch, copy a state if one is due, and return whether an earlier one has just become good."""
        if run.severity >= Severity.CRITICAL:
            self._drop_unproven()
            return False
        if run.severity >= Severity.WARNING:
            return False
        for state in [*self._good, *self._unproven]:
            state.add_loss(None if run.record is None else run.record.loss)
        for state in self._unproven:
            state.healthy_steps += 1
        self._copy_if_due(run)
        return self._promote_oldest()

    def _copy_if_due(self, run: ResponseContext) -> None:
        self._steps_since_copy += 1
        if self._steps_since_copy < self.every_n_steps:
            return
        self._steps_since_copy = 0
        state = self._copy(run)
        if state is not None:
            self._unproven.append(state)

    def _promote_oldest(self) -> bool:
        """Move the oldest unproven state to the good ones after enough healthy steps, and return whether it was."""
        if not self._unproven or self._unproven[0].healthy_steps < self.margin:
            return False
        self._good.append(self._unproven.pop(0))
        while len(self._good) > self.keep:
            self._good.pop(0).close()
        return True

    def keep_failed(self, run: ResponseContext) -> None:
        """Copy the state that is about to be replaced by a good one. A collective call."""
        self.drop_failed()
        self._failed = self._copy(run)

    def _copy(self, run: ResponseContext) -> TrainingState | None:
        """Return the state of the run; None if a process could not keep it. A collective call."""
        state, problem = None, ""
        try:
            state = TrainingState(run.step, stored(snapshot.take(run), self.folder))
        except Exception as error:
            problem = describe(error)
        if all(kept for (kept,) in run.on_all_processes(state is not None)):
            return state
        if state is not None:
            state.close()
        run.log_action("keep-state", f"no state can be kept: {problem or 'another process has failed'}", once=True)
        return None

    # Restoring a state.

    @property
    def step(self) -> int:
        """The step of the last good state."""
        return self._good[-1].step

    @property
    def name(self) -> str:
        """A description of the last good state."""
        return "at the start of the fit" if not self._good or self.step < 0 else f"after step {self.step}"

    @property
    def losses(self) -> list[float]:
        """The first losses of healthy steps after the last good state was copied."""
        return [*self._good[-1].losses] if self._good else []

    def find(self, run: ResponseContext) -> bool:
        """Drop the good states that no longer fit the run; return whether one is left. A collective call."""
        while self._good:
            reason = snapshot.misfit(run, self._good[-1].read())
            if not any(misfit for (misfit,) in run.on_all_processes(reason is not None)):
                return True
            why = reason or "it does not fit on another process"
            run.log_action("drop-state", f"the state after step {self.step} is dropped: {why}")
            self._good.pop().close()
        return False

    def restore(self, run: ResponseContext) -> list[str]:
        """Restore the last good state, and drop those that are not known to be good.

        Returns:
            Names of the parts that could not be restored.
        """
        not_restored = snapshot.restore(run, self._good[-1].read())
        self._drop_unproven()
        return not_restored

    def restore_failed(self, run: ResponseContext) -> list[str]:
        """Restore the state that was replaced by the last good one, if it was kept, and drop all, since none fits.

        Returns:
            Names of the parts that could not be restored.
        """
        not_restored = [] if self._failed is None else snapshot.restore(run, self._failed.read())
        self.clear()
        return not_restored

    # Dropping states.

    @property
    def has_failed(self) -> bool:
        """Whether the state that was replaced by a good one is kept."""
        return self._failed is not None

    def drop_failed(self) -> None:
        """Drop the state that was replaced by a good one."""
        if self._failed is not None:
            self._failed.close()
            self._failed = None

    def drop_latest(self) -> None:
        """Drop the last good state if there is an older one."""
        if len(self._good) > 1:
            self._good.pop().close()

    def clear(self) -> None:
        """Drop all states."""
        self.drop_failed()
        self._drop_unproven()
        while self._good:
            self._good.pop().close()

    def _drop_unproven(self) -> None:
        while self._unproven:
            self._unproven.pop().close()
        self._steps_since_copy = 0

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return all states, or none where each process holds only a part of them."""
        if not self.in_checkpoint or any(one.is_sharded for one in [*self._good, *self._unproven]):
            return {}
        return {
            "since": self._steps_since_copy,
            "good": [one.state_dict() for one in self._good],
            "pending": [one.state_dict() for one in self._unproven],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what `state_dict` returned, if it contains states."""
        if not state:
            return []
        good, unproven = (
            [TrainingState.from_state_dict(one, self.folder) for one in state[name]] for name in ("good", "pending")
        )
        self.clear()
        self._good, self._unproven, self._steps_since_copy = good, unproven, int(state["since"])
        return []
