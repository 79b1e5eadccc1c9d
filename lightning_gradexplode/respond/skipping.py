"""Skipping of the updates of steps with a critical finding."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode import checks
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.records.state import Stateful
from lightning_gradexplode.respond.base import Response, ResponseContext


class SkipStep(Stateful, Response):
    """Skip the update of a step at which the explosion is found before the update.

    The gradients are removed from the optimizer right before its step, so that the weights and the optimizer's state
    stay bit-identical (except for LBFGS's count of function evaluations). Changes by the forward pass are not undone,
    except in modules with a NaN or infinite buffer, such as a running average of batch normalization: the buffers of
    such a module are restored from before the step.

    If a finding is made after the update (weights, update ratio), or the explosion continues after `most_in_a_row`
    skipped steps, the next response in ``on_explosion`` acts. A critical finding of finite values comes from the
    weights, which skipping does not change: such steps count as consecutive until `cooldown` steps are without a
    critical finding. Non-finite values may come from a single batch: then one step without a critical finding is
    sufficient.

    Args:
        most_in_a_row: Maximum number of consecutive steps that are skipped.
        cooldown: Number of steps without a critical finding after which steps are skipped again.
        most: Maximum number of steps that are skipped in a fit; None for no limit.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.
    """

    def __init__(self, most_in_a_row: int = 3, cooldown: int = 20, most: int | None = None) -> None:
        self.most_in_a_row = checks.count("most_in_a_row", most_in_a_row, 1)
        self.cooldown = checks.count("cooldown", cooldown)
        self.most = checks.limit("most", most)
        self._reset()

    def _reset(self) -> None:
        self._skipped = 0
        self._in_a_row = 0
        self._calm = 0
        self._resting = 0
        self._is_of_batch = True

    def started(self, run: ResponseContext) -> None:
        """Begin a fit."""
        self._reset()

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Hold back the update."""
        if not run.before_update:
            run.log_action("skip-refused", f"nothing is skipped: {run.cause} was found after the update", once=True)
            return False
        if self._resting:
            return False
        if self.most is not None and self._skipped >= self.most:
            run.log_action("skip-ends", f"giving up on skipping after {self._skipped} steps of this fit", once=True)
            return False
        if self._in_a_row >= self.most_in_a_row:
            self._resting = self.cooldown
            run.log_action("skip-ends", f"giving up on skipping after {self._in_a_row} steps in a row", once=True)
            return False
        self._skipped += 1
        self._in_a_row += 1
        self._is_of_batch = all(finding.sign.startswith("nonfinite") for finding in findings)
        run.hold_back_update()
        counts = f"{self._in_a_row} in a row, {self._skipped} in this fit"
        run.log_action("skip", f"the update is skipped because of {run.cause} ({counts})")
        return True

    def batch_ended(self, run: ResponseContext) -> None:
        """Count the steps without a critical finding."""
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self._calm:
            if self._is_of_batch or self._calm >= self.cooldown:
                self._in_a_row = 0
            self._resting = max(0, self._resting - 1)
        elif self._resting:
            self._resting = self.cooldown
