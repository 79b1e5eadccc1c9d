"""Checkpoints of the states before and at an explosion, and the protection of earlier checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_gradexplode import checks
from lightning_gradexplode.distributed.shard_layout import is_sharded
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.records.state import Stateful
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.respond import snapshot
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.good_states import GoodStates
from lightning_gradexplode.respond.rate_limit import RateLimit


class SaveCheckpoint(Stateful, Response):
    """Save the last good state and the bad one as checkpoints, and protect those of ``ModelCheckpoint``.

    At a critical finding ``good-step=<step>.ckpt`` (``good-start.ckpt`` if no step is known to be good) and
    ``bad-step=<step>.ckpt`` are written, before the bad update if the explosion is found before it. Both can be passed
    to ``Trainer.fit`` as ``ckpt_path``; the data continue from the batch of the explosion. A state is good after
    `margin` healthy steps. This response does not act against the explosion: list it before one that does, as in
    ``on_explosion=["checkpoint", "rollback"]``.

    At each batch with a critical finding, the trainer's ``ModelCheckpoint`` callbacks save nothing, so that a lost run
    overwrites neither the best nor the last checkpoint.

    Logged as ``gradexplode/explosion_checkpoints``: the number of times that both were saved.

    At most ``1 + ceil(margin / every_n_steps)`` states are held in host memory (2 by default).

    Args:
        folder: Folder of the checkpoints; None is ``<log dir>/gradexplode``.
        every_n_steps: Number of healthy steps from one state to the next.
        margin: Number of healthy steps after which a state is good.
        cooldown: Number of steps from one pair of checkpoints to the next.
        most: Maximum number of pairs in a fit; None for no limit.
        in_checkpoint: Whether the run's checkpoints contain the states, as with `Rollback`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    is_remedy = False
    not_saved = ("_target",)

    def __init__(
        self,
        folder: str | Path | None = None,
        every_n_steps: int = 25,
        margin: int = 25,
        cooldown: int = 100,
        most: int | None = 3,
        in_checkpoint: bool = False,
    ) -> None:
        self.folder = None if folder is None else checks.folder("folder", folder)
        self._budget = RateLimit(most, cooldown)
        self._states = GoodStates(
            checks.count("every_n_steps", every_n_steps, 1),
            checks.count("margin", margin, 1),
            1,
            None,
            in_checkpoint,
        )
        self._target = Path()

    def started(self, run: ResponseContext) -> None:
        """Copy the state that the fit starts with, and find the folder."""
        self._budget.reset()
        self._target = self.folder or run.log_folder() / "gradexplode"
        if run.loop.can_save_checkpoints:
            self._states.start(run)
        else:
            run.log_action("checkpoint", "no checkpoints are saved: this training loop cannot write them", once=True)

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Save both states."""
        if not run.loop.can_save_checkpoints or self._budget.cools_down(run.step):
            return False
        if self._budget.is_used_up:
            ends = f"no more checkpoints are saved after {self._budget.used} pairs"
            run.log_action("checkpoint-ends", ends, once=True)
            return False
        self._budget.use(run.step)
        saved = [self._save(run, f"bad-step={run.step}.ckpt")]
        if self._states.find(run):
            step = self._states.step
            now = snapshot.take(run)
            try:
                self._states.restore(run)
                saved.append(self._save(run, "good-start.ckpt" if step < 0 else f"good-step={step}.ckpt"))
            finally:
                snapshot.restore(run, now)
        else:
            run.log_action("checkpoint", "no good state is saved: none is known to be good")
        names = " and ".join(name for name in saved if name)
        if names:
            run.log_action("checkpoint", f"saved {names} in {self._target} because of {run.cause}")
        return False

    def _save(self, run: ResponseContext, name: str) -> str:
        """Write a checkpoint; return its name, or nothing if it could not be written, on any process."""
        # Test the folder first: if one process fails in a checkpoint that all of them write, the others wait.
        done = self._works(run, name, self._try_folder, run) and self._works(
            run, name, run.loop.save_checkpoint, self._target / name
        )
        if not done and run.loop.is_main_process:
            path = self._target / name
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return name if done else ""

    def _try_folder(self, run: ResponseContext) -> None:
        """Test whether files can be created in the folder, on each process that writes checkpoints."""
        if run.loop.is_main_process or any(map(is_sharded, run.module.parameters())):
            self._target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._target):
                pass

    @staticmethod
    def _works(run: ResponseContext, name: str, call: Callable[..., None], *arguments: Any) -> bool:
        """Call a function, and return whether it succeeded on all processes; a collective call."""
        problem = ""
        try:
            call(*arguments)
        except Exception as error:
            problem = describe(error)
        if not any(failed for (failed,) in run.on_all_processes(bool(problem))):
            return True
        run.log_action("checkpoint", f"{name} could not be saved: {problem or 'another process has failed'}")
        return False

    def batch_ended(self, run: ResponseContext) -> None:
        """Keep a good state; after a critical finding, prevent the loop's own callbacks from saving."""
        if run.loop.can_save_checkpoints:
            self._states.batch_ended(run)
        if run.severity >= Severity.CRITICAL:
            run.loop.block_checkpoints()

    def ended(self) -> None:
        """Drop all states."""
        self._states.clear()

    def scalars(self) -> dict[str, float]:
        """Return the number of times that both were saved."""
        return {"explosion_checkpoints": float(self._budget.used)}
