"""Shorter steps for a while, with the schedule's shape kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.rate_limit import Budget, checked_count, checked_factor, checked_most


class LearningRateFactor:
    """Multiplies the learning rate of every parameter group during an optimizer's step, and only then.

    Between the steps the groups hold what the schedule has put there. So a scheduler that computes a rate from the one
    before is not led astray, and a checkpoint holds the schedule's own rates.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._originals: list[tuple[dict[str, Any], Any]] = []

    def apply(self, optimizer: Optimizer) -> None:
        """Multiply the rates."""
        if self.value == 1.0:
            return
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._originals.append((group, rate.clone()))
                rate.mul_(self.value)  # in place: a captured graph reads this very tensor
            elif isinstance(rate, (int, float)):
                self._originals.append((group, rate))
                group["lr"] = rate * self.value

    def undo(self) -> None:
        """Put back the rates as they were."""
        for group, rate in self._originals:
            if isinstance(rate, torch.Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self._originals = []


class ReduceLearningRate(Response):
    """Multiply the learning rate of all parameter groups by a factor, hold it there, and let it return.

    The rate at a step is the schedule's, times the factor. The update of the step at which the rate is cut is held
    back if it is not too late. For `cooldown` steps after a cut the run is given time, and updates happen although
    findings may still be critical, unless the loss or a gradient is not finite; then, if it did not help, the rate is
    cut again. Logged as ``gradexplode/learning_rate_factor``.

    Args:
        factor: What the learning rate is multiplied by at each cut.
        hold: Steps without a critical finding that the rate stays where it was cut to.
        return_over: Steps over which it then returns, by the same factor at each; 0 to return at once.
        cooldown: Steps after a cut that it is given to help.
        most: Cuts in a fit; the next response in ``on_explosion`` acts when they are used up. None for any number.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(
        self, factor: float = 0.5, hold: int = 100, return_over: int = 100, cooldown: int = 10, most: int | None = 5
    ) -> None:
        self.factor = checked_factor("factor", factor)
        self.hold = checked_count("hold", hold)
        self.return_over = checked_count("return_over", return_over)
        self._budget = Budget(checked_most("most", most), checked_count("cooldown", cooldown))
        self._rate = LearningRateFactor()
        self._calm = 0

    def started(self, run: ResponseContext) -> None:
        """Forget an earlier fit."""
        self._budget = Budget(self._budget.most, self._budget.cooldown)
        self._rate = LearningRateFactor()
        self._calm = 0

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Cut the rate, or wait for the last cut to help."""
        if self._budget.cools_down(run.step):
            return not any(finding.sign.startswith("nonfinite") for finding in findings)
        if self._budget.spent:
            return False
        self._budget.use(run.step)
        self._rate.value *= self.factor
        self._calm = 0
        run.hold_back_update()
        most = "" if self._budget.most is None else f" of {self._budget.most}"
        run.tell(f"the learning rate is cut to {self._rate.value:g} of its schedule (cut {self._budget.used}{most})")
        return True

    def step_begins(self, optimizer: Optimizer) -> None:
        """Multiply the rates."""
        self._rate.apply(optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Put back the rates."""
        self._rate.undo()

    def batch_ended(self, run: ResponseContext) -> None:
        """Let the rate return when it has been calm for long enough."""
        if self._rate.value == 1.0:
            return
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self._calm < self.hold:
            return
        rise = self.factor ** (-self._budget.used / self.return_over) if self.return_over else float("inf")
        self._rate.value = min(1.0, self._rate.value * rise)
        if self._rate.value > 0.999999:
            self._rate.value = 1.0
            run.tell("the learning rate is back at its schedule")

    def ended(self) -> None:
        """Put back the rates."""
        self._rate.undo()

    def scalars(self) -> dict[str, float]:
        """Give the factor."""
        return {"learning_rate_factor": self._rate.value}

    def state_dict(self) -> dict[str, Any]:
        """Give the factor and the counts."""
        return {"rate": self._rate.value, "calm": self._calm, "budget": self._budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._rate.value, self._calm = state["rate"], state["calm"]
        self._budget.load_state_dict(state["budget"])
