"""Reduction of the learning rate for a number of steps, by a factor of the scheduled rate."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.learning_rate_factor import LearningRateFactor
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.records.state import Stateful
from lightning_gradexplode.respond.base import Response, ResponseContext
from lightning_gradexplode.respond.rate_limit import RateLimit


class ReduceLearningRate(Stateful, Response):
    """Multiply the learning rate of all parameter groups by a factor, hold it, then return to the schedule.

    The learning rate of a step is the scheduled one times the factor. At the step of a reduction the update is skipped
    if the optimizer has not stepped yet. For `cooldown` steps after a reduction, updates with finite gradients are
    applied even if findings are critical; if the reduction has not helped by then, the rate is reduced
    again. Logged as ``gradexplode/learning_rate_factor``.

    Args:
        factor: Factor of the learning rate at each reduction.
        hold: Number of steps without a critical finding during which the rate stays reduced.
        return_over: Number of steps over which the rate then returns geometrically; 0 to return at once.
        cooldown: Number of steps from one reduction to the next.
        most: Maximum number of reductions in a fit, after which the next response in ``on_explosion`` acts; None for no
            limit.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    not_saved = ("_during_step",)

    def __init__(
        self, factor: float = 0.5, hold: int = 100, return_over: int = 100, cooldown: int = 10, most: int | None = 5
    ) -> None:
        self.factor = checks.number("factor", factor, 1.0)
        self.hold = checks.count("hold", hold)
        self.return_over = checks.count("return_over", return_over)
        self._budget = RateLimit(most, cooldown)
        self._during_step = LearningRateFactor()
        self._rate = 1.0
        self._calm = 0

    def started(self, run: ResponseContext) -> None:
        """Begin a fit."""
        self._budget.reset()
        self._rate, self._calm = 1.0, 0

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Reduce the rate, or wait for the effect of the last reduction."""
        if self._budget.cools_down(run.step):
            if not any(finding.sign.startswith("nonfinite") for finding in findings):
                return True
            run.hold_back_update()  # a lower rate does not make it finite: the next response acts, if there is one
            return False
        if self._budget.is_used_up:
            run.log_action("reduce-lr-ends", f"giving up after {self._budget.used} reductions of the rate", once=True)
            return False
        self._budget.use(run.step)
        self._rate *= self.factor
        self._calm = 0
        run.hold_back_update()
        run.log_action(
            "reduce-lr",
            f"the learning rate is reduced to {self._rate:.3g} of its schedule because of {run.cause} "
            f"(reduction {self._budget})",
        )
        return True

    def step_begins(self, optimizer: Optimizer) -> None:
        """Multiply the learning rates."""
        self._during_step.apply(optimizer, self._rate)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Restore the learning rates."""
        self._during_step.undo()

    def batch_ended(self, run: ResponseContext) -> None:
        """Raise the rate again after enough steps without a critical finding."""
        if self._rate == 1.0:
            return
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self._calm < self.hold:
            return
        rise = self.factor ** (-self._budget.used / self.return_over) if self.return_over else float("inf")
        self._rate = min(1.0, self._rate * rise)
        if self._rate > 0.999999:
            self._rate = 1.0
            run.log_action("reduce-lr-ends", f"the learning rate is back at its schedule after {self._calm} calm steps")

    def ended(self) -> None:
        """Restore the learning rates."""
        self._during_step.undo()

    def scalars(self) -> dict[str, float]:
        """Return the factor."""
        return {"learning_rate_factor": self._rate}
