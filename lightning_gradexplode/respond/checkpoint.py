"""Checkpoints of an explosion, and none of it in place of a good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.respond import snapshot
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.good_states import GoodStates
from lightning_gradexplode.respond.rate_limit import Budget, checked_count, checked_most


class SaveCheckpoint(Response):
    """Save the last good state and the bad one as Lightning checkpoints, and protect those of ``ModelCheckpoint``.

    At a critical finding ``good-step=<step>.ckpt`` (``good-start.ckpt`` if no step was known to be good) and
    ``bad-step=<step>.ckpt`` are written, before the bad update where it is seen before it. ``Trainer.fit`` takes both
    as ``ckpt_path``, and goes on with the data from where the explosion was seen. A good state is one after which
    `margin` steps were healthy. It does nothing about the explosion itself: put it before what does, as in
    ``on_explosion=["checkpoint", "rollback"]``.

    At each batch with a critical finding, the trainer's ``ModelCheckpoint`` callbacks save nothing, so that a lost run
    overwrites neither the best nor the last checkpoint.

    Logged as ``gradexplode/explosion_checkpoints``: how often both were saved.

    At most ``1 + ceil(margin / every_n_steps)`` states are held in host memory (2 by default).

    Args:
        folder: Where the checkpoints go; None is ``<log dir>/gradexplode``.
        every_n_steps: Healthy steps from one state to the next.
        margin: Healthy steps after which a state is good.
        cooldown: Steps from one pair of checkpoints to the next.
        most: Pairs in a fit; None for any number.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every_n_steps: int = 25,
        margin: int = 25,
        cooldown: int = 100,
        most: int | None = 3,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self._budget = Budget(checked_most("most", most), checked_count("cooldown", cooldown))
        self._states = GoodStates(
            checked_count("every_n_steps", every_n_steps, 1), checked_count("margin", margin, 1), 1, None
        )

    def started(self, run: ResponseContext) -> None:
        """Take the state that the fit starts with, and find the folder."""
        self._budget = Budget(self._budget.most, self._budget.cooldown)
        self._states.start(run)
        self._target = self.folder or run.log_folder() / "gradexplode"

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Save both states."""
        if not self._budget.spent and not self._budget.cools_down(run.step):
            self._budget.use(run.step)
            good = self._target / (
                "good-start.ckpt" if self._states.step < 0 else f"good-step={self._states.step}.ckpt"
            )
            bad = self._target / f"bad-step={run.step}.ckpt"
            run.trainer.save_checkpoint(bad)
            now = snapshot.take(run)
            self._states.put_back(run)
            try:
                run.trainer.save_checkpoint(good)
            finally:
                snapshot.put_back(run, now)
            run.tell(f"the last good state and this one are saved as {good} and {bad.name}")
        return False

    def batch_ended(self, run: ResponseContext) -> None:
        """Keep a good state; after a critical finding, keep others from saving."""
        self._states.batch_ended(run)
        if run.severity >= Severity.CRITICAL:
            run.save_nothing_now()

    def ended(self) -> None:
        """Let go of all states."""
        self._states.clear()

    def scalars(self) -> dict[str, float]:
        """Give the number of times that both were saved."""
        return {"explosion_checkpoints": float(self._budget.used)}

    def state_dict(self) -> dict[str, Any]:
        """Give the counts."""
        return {"budget": self._budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._budget.load_state_dict(state["budget"])
