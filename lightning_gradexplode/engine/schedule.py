"""What is due at which step: by the schedule, and at every step for a while after a finding."""

from __future__ import annotations

from lightning_gradexplode.arguments import LoggingIntervals

ALERT_STEPS = 10
"""For so many steps after a finding, everything is measured and logged at each."""


class LoggingSchedule:
    """A schedule that findings override.

    Args:
        schedule: What is due while all is calm.
    """

    def __init__(self, schedule: LoggingIntervals) -> None:
        self.alert_until = -1
        self._schedule = schedule

    def alarm(self, step: int) -> None:
        """Have everything measured at a step and at those after it."""
        self.alert_until = step + ALERT_STEPS

    def scalars_due(self, step: int) -> bool:
        """Tell whether scalars are logged at a step."""
        return self._schedule.scalars_due(step, step <= self.alert_until)

    def histograms_due(self, step: int) -> bool:
        """Tell whether histograms are logged at a step."""
        return self._schedule.histograms_due(step, step <= self.alert_until)

    def nodes_due(self, step: int, first: bool) -> bool:
        """Tell whether error gradients of nodes are measured at a step; at the run's first one they are."""
        return self._schedule.nodes_due(step, step <= self.alert_until, first)
