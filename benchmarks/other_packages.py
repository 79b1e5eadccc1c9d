"""The code of other packages, called with the same records as the monitor's detectors, if they are installed.

``pip install trainscope==1.8.1 stabilityguard==0.3.0 trainpulse==0.4.0`` installs them. Each is called as by its own
training hook, with its defaults; an alarm is a spike or an alert that the package reports.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from benchmarks.other_rules import Rule
from lightning_gradexplode import StepRecord


class TrainScope(Rule):
    """trainscope: its default detector, Page's CUSUM of the loss. Losses that are not finite do not reach it."""

    name = "trainscope"

    def __init__(self) -> None:
        self._rule: Any = importlib.import_module("trainscope.core.detectors.changepoint").ChangePointDetector()

    def alarms(self, record: StepRecord) -> bool:
        """Update it with the loss."""
        if record.loss is None or not math.isfinite(record.loss):
            return False
        return self._rule.update(record.loss) is not None


class StabilityGuard(Rule):
    """StabilityGuard: its spike detector of each layer's gradient norm; here of each parameter's."""

    name = "StabilityGuard"

    def __init__(self) -> None:
        self._rule: Any = importlib.import_module("stabilityguard.core.spike_detector").SpikeDetector()

    def alarms(self, record: StepRecord) -> bool:
        """Check the norms, with the names of those that are not finite."""
        norms = record.per_parameter.get("grad_norm")
        if norms is None:
            return False
        named = dict(zip(record.parameters, norms.tolist(), strict=True))
        found: bool = self._rule.check(named, {name for name, norm in named.items() if not math.isfinite(norm)})[0]
        return found


class TrainPulse(Rule):
    """trainpulse: any alert of its monitor about a spike, an explosion or NaN, and none about a plateau."""

    name = "trainpulse"

    def __init__(self) -> None:
        self._monitor: Any = importlib.import_module("trainpulse").Monitor()

    def alarms(self, record: StepRecord) -> bool:
        """Log both numbers."""
        numbers = {"loss": record.loss, "grad_norm": record.grad_norm}
        alerts = [
            alert
            for name, value in numbers.items()
            if value is not None
            for alert in self._monitor.log(name, record.step, value)
        ]
        return any(one.detector == "loss_spike" or one.severity.value == "critical" for one in alerts)


def _is_installed(rule: type[Rule]) -> bool:
    try:
        rule()
    except ImportError:
        return False
    return True


PACKAGES: tuple[type[Rule], ...] = tuple(filter(_is_installed, (TrainScope, StabilityGuard, TrainPulse)))
