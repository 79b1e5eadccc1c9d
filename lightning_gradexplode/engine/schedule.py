"""What is logged at which step: at intervals, and at every step for a while after a finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gradexplode.records.repeats import Repeats

ALERT_STEPS = 10
"""Number of steps after a finding at which everything is measured, and of the first such findings logged."""


class LoggingSchedule:
    """The intervals of scalars and histograms, in phase with the training loop's own logging.

    Args:
        scalars: Number of steps from one log of scalars to the next, 0 for never.
        histograms: The same for histograms.
        first: Number of the run's first step.

    Attributes:
        has_histograms: Whether histograms are ever measured.
    """

    def __init__(self, scalars: int, histograms: int, first: int = 0) -> None:
        self._offset = 1 - first
        self._scalars = scalars
        self._histograms = histograms
        self.has_histograms = histograms > 0
        self._alert_until = -1
        self._log_until = -1
        self._repeats = Repeats()

    def alert(self, step: int, kinds: Iterable[str]) -> None:
        """Make everything due at a step and at the `ALERT_STEPS` after it.

        Args:
            step: The step.
            kinds: The kinds of the findings; of each kind the first three, the 10th, the 100th and so on have these
                steps logged too.
        """
        self._alert_until = step + ALERT_STEPS
        due = [kind for kind in kinds if self._repeats.is_due(kind)]  # each is counted
        if due:
            self._log_until = self._alert_until

    def logs_scalars(self, step: int) -> bool:
        """Return whether scalars that are due at a step are logged, too."""
        return step <= self._log_until or (self._scalars > 0 and (step + self._offset) % self._scalars == 0)

    def logs_histograms(self, step: int) -> bool:
        """Return whether histograms that are due at a step are logged, too."""
        return step <= self._log_until or (self.has_histograms and (step + self._offset) % self._histograms == 0)

    def due(self, step: int) -> tuple[bool, bool]:
        """Return whether scalars and whether histograms are measured at a step."""
        count, alerted = step + self._offset, step <= self._alert_until
        scalars, histograms = self._scalars, self._histograms
        return (
            scalars > 0 and (alerted or count % scalars == 0),
            histograms > 0 and (alerted or count % histograms == 0),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the steps until which everything is measured and logged."""
        return {"alert_until": self._alert_until, "log_until": self._log_until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._alert_until = int(state["alert_until"])
        self._log_until = int(state.get("log_until", -1))  # 0.2.0 did not save it
