"""Rollback: restores the last good state of a run, and continues with a lower learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.learning_rate_factor import LearningRateFactor
from lightning_gradexplode.records import Finding
from lightning_gradexplode.records.state import Stateful
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.good_states import GoodStates
from lightning_gradexplode.respond.rate_limit import RateLimit
from lightning_gradexplode.respond.restored_losses import RestoredLosses

_PATIENCE = 20
"""Maximum number of consecutive updates that are held back before the first update after a state was restored."""


class Rollback(Stateful, Response):
    """Restore the last good state of the run, and continue with the following batches and a lower learning rate.

    A state consists of weights, buffers, averages of the weights, optimizers, schedulers, gradient scaler, random
    states and the monitor's own state. One is copied every `every_n_steps` healthy steps. It counts as good after
    `margin` further healthy steps, since an explosion starts before it is found. The state at the start of a run is
    good; the one at the start of a resumed fit only after `margin` healthy steps. The position in the data is not
    restored, so that the bad batches are not used again. A state that no longer fits the run (a model with new layers)
    is dropped.

    The first losses after a state is restored are compared with those after it was copied. If they are far higher, and
    not half of the one that failed, the data or the objective has changed: the rollback is undone, all good states are
    dropped, and the next rollback follows once a new state is good.

    If another rollback follows before a new state is good, an older state is restored, if one is kept, and the learning
    rate is multiplied by `learning_rate_factor` one time more than at the previous rollback. After `most_in_a_row`
    rollbacks without a new good state, or `most` in the fit, the next response in ``on_explosion`` acts. With each new
    good state the rate is divided by the square root of `learning_rate_factor`, up to `learning_rate_factor` times the
    rate that failed last, or that failed first if lower rates have not helped.

    With ``clip="auto"`` the rate of the schedule is kept. Steps are small after the rollback and then grow, up to
    `learning_rate_factor` times the largest of the last steps before it.

    If loss or gradients are not finite before the first update after a rollback, the cause is the data or the number
    format: up to 20 consecutive updates are skipped before the next rollback.

    Logged as ``gradexplode/rollbacks`` and ``gradexplode/rollback_rate_factor``.

    At most ``keep + ceil(margin / every_n_steps)`` states are held (3 by default), each as large as a checkpoint: under
    FSDP2 each process holds its own shards, under DDP each holds all. For one or two steps after a rollback, one more
    is held, from before it.

    Args:
        every_n_steps: Number of healthy steps from one state to the next.
        margin: Number of healthy steps after which a state is good.
        keep: Number of good states that are kept.
        learning_rate_factor: Factor of the learning rate at a rollback; 1.0 keeps the rate.
        most: Maximum number of rollbacks in a fit; None for no limit.
        folder: Folder for states as files of this fit; None keeps them in host memory.
        most_in_a_row: Maximum number of rollbacks without a new good state between them.
        in_checkpoint: Whether the run's checkpoints contain the states, so that a resumed run can restore the
            same states as an uninterrupted one. Each state increases a checkpoint by its size. Sharded states are
            omitted.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    not_saved = ("_during_step", "_pending_cause", "_misfit")

    def __init__(
        self,
        every_n_steps: int = 25,
        margin: int = 25,
        keep: int = 2,
        learning_rate_factor: float = 0.5,
        most: int | None = 10,
        folder: str | Path | None = None,
        most_in_a_row: int = 5,
        in_checkpoint: bool = True,
    ) -> None:
        self.learning_rate_factor = checks.number("learning_rate_factor", learning_rate_factor, 1.0)
        self.most_in_a_row = checks.count("most_in_a_row", most_in_a_row, 1)
        self._states = GoodStates(
            checks.count("every_n_steps", every_n_steps, 1),
            checks.count("margin", margin, 1),
            checks.count("keep", keep, 1),
            None if folder is None else checks.folder("folder", folder),
            in_checkpoint,
        )
        self._budget = RateLimit(most)
        self._during_step = LearningRateFactor()
        self._reset()

    def _reset(self) -> None:
        self._budget.reset()
        self._rate = self._highest_rate = self._first_cut = 1.0
        self._in_a_row = 0
        self._held_back = 0
        self._has_updates = False
        self._last_step = -1
        self._misfit = ""  # why a rollback is to be undone
        self._pending_cause = ""  # sign and place of the finding that a rollback is due for
        self._losses = RestoredLosses()

    def started(self, run: ResponseContext) -> None:
        """Copy the state that the fit starts with."""
        self._reset()
        self._states.start(run)

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Hold back the update; at the end of the batch the last good state is restored if one is due."""
        self._add_loss(run, 1)
        if self._misfit:
            run.hold_back_update()
            return True
        if not self._pending_cause and self._can_wait(findings, run):
            why = f"updates are held back because of {run.cause}: none was taken since the state {self._states.name}"
            run.log_action("rollback-waits", why, once=True)
            run.hold_back_update()
            return True
        if not self._pending_cause:
            refusal = self._refusal(run)
            if refusal is not None:
                run.log_action("rollback-ends", f"{refusal} ({run.cause})", once=True)
                return False
        self._pending_cause = self._pending_cause or run.cause
        run.hold_back_update()
        return True

    def _can_wait(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Return whether the update can be held back without a rollback. A collective call.

        That is so for non-finite values if no update was applied since the good state: then no update is the cause.
        """
        is_nonfinite = all(finding.sign in ("nonfinite-loss", "nonfinite-gradient") for finding in findings)
        can_wait = is_nonfinite and run.before_update and not self._has_updates
        if not all(can for (can,) in run.on_all_processes(can_wait)):
            return False
        self._held_back += 1
        return self._held_back <= _PATIENCE

    def _refusal(self, run: ResponseContext) -> str | None:
        if self._budget.is_used_up:
            return f"giving up after {self._budget.used} rollbacks"
        if self._in_a_row >= self.most_in_a_row:
            self._highest_rate = self._first_cut
            rate = (
                "steps begin small" if self._rate == 1.0 else f"its learning rate is {self._rate:.1g} of its schedule"
            )
            return f"giving up after {self._in_a_row} rollbacks in a row: the run explodes again although {rate}"
        return None if self._states.find(run) else "no rollback: there is no state that is known to be good"

    def batch_ended(self, run: ResponseContext) -> None:
        """Restore a state if a rollback is due, else copy the state if that is due."""
        self._add_loss(run, 2)
        if self._misfit:
            self._undo(run)
            return
        if self._losses.is_judged:
            self._states.drop_failed()
        if not self._pending_cause:
            if run.record is None or run.record.update_taken is not False:
                self._has_updates, self._held_back = True, 0
            if self._states.batch_ended(run):
                self._in_a_row = 0
                self._rate = min(self._highest_rate, self._rate / math.sqrt(self.learning_rate_factor))
            return
        self._budget.use(run.step)
        if self._in_a_row:
            self._states.drop_latest()
        self._in_a_row += 1
        why, self._pending_cause, self._has_updates = self._pending_cause, "", False
        sizes = [] if run.memory is None else run.memory.largest_step_sizes()
        if self._losses.restored(self._states.losses):
            self._states.keep_failed(run)
        but = _except(self._restore(run, self._states.restore))
        run.log_action(
            "rollback",
            f"the run is restored to its state {self._states.name} because of {why}, with {self._reduce(run, sizes)} "
            f"(rollback {self._budget}){but}",
        )

    def _add_loss(self, run: ResponseContext, least: int) -> None:
        """Add the loss of a step, and compare it with those from when a restored state was copied.

        Args:
            run: The run.
            least: Number of losses after the state was restored from which on it is judged.
        """
        if run.step != self._last_step:  # else the response has been called at this step
            self._last_step = run.step
            self._losses.add(None if run.record is None else run.record.loss)
            self._misfit = self._losses.misfit(least)

    def _undo(self, run: ResponseContext) -> None:
        """Restore the state from before the last rollback, and drop all others."""
        why, self._misfit, self._pending_cause, self._has_updates = self._misfit, "", "", True
        # After a resumption in between, only the good states are known.
        result = "the rollback is undone" if self._states.has_failed else "the earlier state is not kept any more"
        not_restored = self._restore(run, self._states.restore_failed)
        run.log_action(
            "rollback-undone",
            f"the restored state does not fit the data or the objective of the run any more: {why}; {result}, and the "
            f"next one follows once a new state is good{_except(not_restored)}",
        )

    def _reduce(self, run: ResponseContext, sizes: Sequence[float | None]) -> str:
        """Reduce the learning rate below the one that has failed, and return a description of the new one.

        The steps of a clip policy that changes the rate may have been far smaller than those of the schedule, so that
        even the reduced rate of the schedule may be above the one that has failed. The policy's rate is limited then.
        """
        if run.memory is not None and any(size is not None for size in sizes):
            limits = [None if size is None else size * self.learning_rate_factor for size in sizes]
            run.memory.limit_step_sizes(limits)
            largest = max(limit for limit in limits if limit is not None)
            return f"learning rates of at most {largest:.3g}"
        self._highest_rate = self._rate * self.learning_rate_factor
        if self._in_a_row == 1:
            self._first_cut = self._highest_rate
        self._rate *= self.learning_rate_factor**self._in_a_row
        return f"the learning rate times {self._rate:.3g}"

    def _restore(self, run: ResponseContext, restore: Callable[[ResponseContext], list[str]]) -> list[str]:
        kept, error = [], None
        try:
            kept = restore(run)
        except Exception as caught:
            error = caught
        if any(failed for (failed,) in run.on_all_processes(error is not None)):
            run.stop("a state could not be restored")
            raise error or RuntimeError("a state could not be restored on another process")
        return kept

    def step_begins(self, optimizer: Optimizer) -> None:
        """Multiply the learning rates."""
        self._during_step.apply(optimizer, self._rate)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Restore the learning rates."""
        self._during_step.undo()

    def ended(self) -> None:
        """Drop all states."""
        self._during_step.undo()
        self._states.clear()

    def scalars(self) -> dict[str, float]:
        """Return the number of rollbacks, and the factor of the learning rate."""
        return {"rollbacks": float(self._budget.used), "rollback_rate_factor": self._rate}


def _except(names: Sequence[str]) -> str:
    """Return the words for what was not restored, empty if all was."""
    return f"; not restored: {', '.join(names)}" if names else ""
