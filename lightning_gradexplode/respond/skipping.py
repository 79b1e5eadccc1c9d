"""The update that does not happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.rate_limit import checked_count, checked_most


class SkipStep(Response):
    """Leave out the update of a step at which the explosion shows before it: a bad batch costs its own step only.

    The gradients are taken from the optimizer right before its step, so that the weights and the optimizer's state
    keep every bit (but for LBFGS's count of function evaluations). What the forward pass has changed, such as the
    running averages of batch normalisation, is not undone.

    A finding that comes after the update (weights, update ratio) is too late to skip anything; there, and once
    `most_in_a_row` steps were skipped and the explosion is still there, the next response in ``on_explosion`` acts.

    Args:
        most_in_a_row: Steps that may be skipped one after the other.
        cooldown: After so many in a row, nothing is skipped until so many steps were without a critical finding.
        most: Steps that may be skipped in a fit; None for any number.

    Raises:
        TypeError: An argument is no whole number.
        ValueError: An argument is out of range.
    """

    def __init__(self, most_in_a_row: int = 3, cooldown: int = 20, most: int | None = None) -> None:
        self.most_in_a_row = checked_count("most_in_a_row", most_in_a_row, 1)
        self.cooldown = checked_count("cooldown", cooldown)
        self.most = checked_most("most", most)
        self._begin()

    def _begin(self) -> None:
        self._skipped = 0
        self._in_a_row = 0
        self._resting = 0

    def started(self, run: ResponseContext) -> None:
        """Forget an earlier fit."""
        self._begin()

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Hold back the update."""
        if not run.before_update or self._resting or (self.most is not None and self._skipped >= self.most):
            return False
        if self._in_a_row >= self.most_in_a_row:
            self._resting = self.cooldown
            return False
        run.hold_back_update()
        self._skipped += 1
        self._in_a_row += 1
        run.tell(f"the update is skipped ({self._in_a_row} in a row, {self._skipped} in all)")
        return True

    def batch_ended(self, run: ResponseContext) -> None:
        """Count the steps without a critical finding."""
        if run.severity < Severity.CRITICAL:
            self._in_a_row = 0
            self._resting = max(0, self._resting - 1)
        elif self._resting:
            self._resting = self.cooldown

    def state_dict(self) -> dict[str, Any]:
        """Give the counts."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row, "resting": self._resting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._skipped, self._in_a_row, self._resting = state["skipped"], state["in_a_row"], state["resting"]
