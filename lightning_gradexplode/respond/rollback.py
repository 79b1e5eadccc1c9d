"""Back to a state that was good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.records import Finding
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.good_states import GoodStates
from lightning_gradexplode.respond.learning_rate import LearningRateFactor
from lightning_gradexplode.respond.rate_limit import Budget, checked_count, checked_factor, checked_most


class Rollback(Response):
    """Put the run back to its last good state, and go on from there with other batches and a lower learning rate.

    A state is weights, buffers, optimizers, schedulers, gradient scaler, random states and the monitor's own memory.
    One is taken every `every_n_steps` healthy steps, and is good once `margin` further steps were healthy: growth
    starts before the alarm. The state at the start of the fit (of a resumed one, the checkpoint's) is good too. The
    data go on where they are, so that the offending batches are not seen again.

    Going back again before a new state has become good goes to an older one, if one is kept, and cuts the learning
    rate once more than the time before. After `most` times it gives up, says so, and the next response in
    ``on_explosion`` acts. Logged as ``gradexplode/rollbacks`` and ``gradexplode/rollback_rate_factor``.

    At most ``keep + ceil(margin / every_n_steps)`` states are held (3 by default), each as large as a checkpoint: under
    FSDP2 each process holds its own shards, under DDP each holds all. States of other callbacks (weight averages) do
    not go back.

    Args:
        every_n_steps: Healthy steps from one state to the next.
        margin: Healthy steps after which a state is good.
        keep: Good states that are kept.
        learning_rate_factor: What the learning rate is multiplied by, for the rest of the fit; 1.0 leaves it.
        most: Times in a fit; None for any number.
        folder: Where states are kept as files of this fit; None keeps them in host memory.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 25,
        margin: int = 25,
        keep: int = 2,
        learning_rate_factor: float = 0.5,
        most: int | None = 10,
        folder: str | Path | None = None,
    ) -> None:
        self._states = GoodStates(
            checked_count("every_n_steps", every_n_steps, 1),
            checked_count("margin", margin, 1),
            checked_count("keep", keep, 1),
            None if folder is None else Path(folder),
        )
        self.learning_rate_factor = checked_factor("learning_rate_factor", learning_rate_factor)
        self._budget = Budget(checked_most("most", most), 0)
        self._begin()

    def _begin(self) -> None:
        self._budget = Budget(self._budget.most, 0)
        self._rate = LearningRateFactor()
        self._in_a_row = 0
        self._asked = False
        self._told = False

    def started(self, run: ResponseContext) -> None:
        """Take the state that the fit starts with."""
        self._begin()
        self._states.start(run)

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Hold back the update; the state is put back when the batch is over, as it was taken."""
        if self._budget.spent and not self._asked:
            if not self._told:
                run.tell(f"rolled back {self._budget.used} times, and it explodes again: no more of it")
            self._told = True
            return False
        self._asked = True
        run.hold_back_update()
        return True

    def batch_ended(self, run: ResponseContext) -> None:
        """Put back a state if that is called for, else keep the good ones."""
        if not self._asked:
            if self._states.batch_ended(run):
                self._in_a_row = 0
            return
        self._asked = False
        self._budget.use(run.step)
        if self._in_a_row:
            self._states.drop_latest()
        self._in_a_row += 1
        self._rate.value *= self.learning_rate_factor**self._in_a_row
        self._states.put_back(run)
        back = "to the start of the fit" if self._states.step < 0 else f"to the state after step {self._states.step}"
        most = "" if self._budget.most is None else f" of {self._budget.most}"
        run.tell(
            f"the run is put back {back}, with the learning rate times {self._rate.value:.3g} "
            f"(rollback {self._budget.used}{most})"
        )

    def step_begins(self, optimizer: Optimizer) -> None:
        """Multiply the learning rates."""
        self._rate.apply(optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Put back the learning rates."""
        self._rate.undo()

    def ended(self) -> None:
        """Let go of all states."""
        self._rate.undo()
        self._states.clear()

    def scalars(self) -> dict[str, float]:
        """Give the number of rollbacks, and the factor of the learning rate."""
        return {"rollbacks": float(self._budget.used), "rollback_rate_factor": self._rate.value}

    def state_dict(self) -> dict[str, Any]:
        """Give the counts; the states themselves stay behind, a checkpoint being one."""
        return {"budget": self._budget.state_dict(), "rate": self._rate.value, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._budget.load_state_dict(state["budget"])
        self._rate.value, self._in_a_row = state["rate"], state["in_a_row"]
