"""The definition of an incident for console, alerts, reports, responses and diagnosis: when it begins and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradexplode.records import Finding, Severity

CALM_STEPS = 50
"""Number of steps without a WARNING or CRITICAL finding that end an incident."""


class IncidentTracker:
    """Groups the findings of a run into incidents.

    An incident begins with a finding of at least WARNING, whatever its sign, and ends after `CALM_STEPS` steps without
    one. Within it, a sign is new once, and again when it gets worse. INFO findings belong to no incident; each sign of
    them is new again after `CALM_STEPS` steps without it.

    Args:
        calm_steps: Number of steps that end an incident.

    Attributes:
        began: The step at which the current incident began, None between incidents.
        severity: Worst severity of the current incident, 0 between incidents.
    """

    def __init__(self, calm_steps: int = CALM_STEPS) -> None:
        self.began: int | None = None
        self.severity = 0
        self._calm_steps = calm_steps
        self._last_step = -1
        self._has_ended = False
        self._worst: dict[str, int] = {}
        self._last_info: dict[str, int] = {}

    @property
    def is_critical(self) -> bool:
        """Whether there is an incident with a CRITICAL finding."""
        return self.severity >= Severity.CRITICAL

    def ends(self, step: int) -> bool:
        """End the incident if it is over at a step.

        Returns:
            Whether an incident has ended since the last call.
        """
        if self.began is not None and step - self._last_step > self._calm_steps:
            self.began, self.severity = None, 0
            self._worst.clear()
            self._has_ended = True
        ended, self._has_ended = self._has_ended, False
        return ended

    def add(self, findings: Sequence[Finding]) -> list[Finding]:
        """Add the findings of a step.

        Returns:
            Those that are new to their incident, or make their sign worse.
        """
        return [finding for finding in findings if self._is_new(finding)]

    def _is_new(self, finding: Finding) -> bool:
        if finding.severity < Severity.WARNING:
            last = self._last_info.get(finding.sign)
            self._last_info[finding.sign] = finding.step
            return last is None or finding.step - last > self._calm_steps
        self._has_ended = self.ends(finding.step)
        if self.began is None:
            self.began = finding.step
        self._last_step = finding.step
        self.severity = max(self.severity, int(finding.severity))
        new = finding.severity > self._worst.get(finding.sign, 0)
        if new:
            self._worst[finding.sign] = int(finding.severity)
        return new

    def state_dict(self) -> dict[str, Any]:
        """Return the current incident in plain values."""
        return {
            "began": self.began,
            "severity": int(self.severity),
            "last_step": self._last_step,
            "worst": dict(self._worst),
            "last_info": dict(self._last_info),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        began = state.get("began")
        self.began = None if began is None else int(began)
        self.severity = int(state.get("severity", 0))
        self._last_step = int(state.get("last_step", -1))
        self._worst = {str(sign): int(worst) for sign, worst in state.get("worst", {}).items()}
        self._last_info = {str(sign): int(step) for sign, step in state.get("last_info", {}).items()}
