"""Which findings belong to the same explosion, so that people hear of it once."""

from __future__ import annotations

from lightning_gradexplode.records import Finding, Severity


class Incident:
    """Findings of at least a warning, whatever their sign, that follow each other without a calm while in between.

    Args:
        calm: Number of steps without a finding that end an incident.
    """

    def __init__(self, calm: int = 50) -> None:
        self.began = -1
        self._calm = calm
        self._last: int | None = None
        self._worst = 0

    def is_critical(self, step: int) -> bool:
        """Tell whether there is an incident at a step, and was critical before."""
        return self._goes_on(step) and self._worst >= Severity.CRITICAL

    def note(self, finding: Finding) -> bool:
        """Add a finding, and tell whether it begins an incident or makes it worse; one below a warning never does."""
        if finding.severity < Severity.WARNING:
            return False
        if not self._goes_on(finding.step):
            self.began, self._worst = finding.step, 0
        self._last = finding.step
        worse = finding.severity > self._worst
        self._worst = max(self._worst, int(finding.severity))
        return worse

    def _goes_on(self, step: int) -> bool:
        return self._last is not None and 0 <= step - self._last <= self._calm
