"""An incident: its findings, and what is known of its values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_gradexplode.records import LEFT_OUT, Finding, Severity, StepRecord, UpdateFault
from lightning_gradexplode.records.finding import NONFINITE_SIGNS


@dataclass(slots=True)
class LatestIncident:
    """The incident of a run that began last.

    Attributes:
        onset: The step at which it began, -1 in a run without one.
        now: The step of its latest findings, -1 before any.
        findings: Its findings of at least WARNING, oldest first.
        update_is_harmless: Whether none of its values that are not finite can reach the weights, since all gradients of
            their steps are zero.
        is_left_out: Whether the training loop itself runs no optimizer step for any of these values.
        update_fault: The first weight that an update with finite gradients has made non-finite, None without one.
    """

    onset: int = -1
    now: int = -1
    findings: list[Finding] = field(default_factory=list)
    update_is_harmless: bool = False
    is_left_out: bool = False
    update_fault: UpdateFault | None = None

    @property
    def is_critical(self) -> bool:
        """Whether it has a CRITICAL finding."""
        return any(one.severity is Severity.CRITICAL for one in self.findings)

    @property
    def failed_at(self) -> int | None:
        """The first step with a value that is not finite, None without one."""
        return min((one.step for one in self.findings if one.sign in NONFINITE_SIGNS), default=None)

    def add(self, record: StepRecord, findings: Sequence[Finding]) -> None:
        """Add findings of at least WARNING.

        Args:
            record: The step at which they were made; they may be of earlier, held steps.
            findings: The findings, at least one.
        """
        if is_any_nonfinite(findings):
            is_first = self.failed_at is None
            self.update_is_harmless = record.grad_norm == 0.0 and (is_first or self.update_is_harmless)
            self.is_left_out = record.skipped_by == LEFT_OUT and (is_first or self.is_left_out)
        self.findings += findings
        steps = [one.step for one in findings]
        self.now = record.step if record.step in steps else max(steps)


def is_any_nonfinite(findings: Sequence[Finding]) -> bool:
    """Return whether any finding is of a value that is not finite."""
    return any(one.sign in NONFINITE_SIGNS for one in findings)
