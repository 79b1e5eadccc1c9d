"""What the recorded histories of a run show around an incident: levels before it and growth into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.records import Evidence, Finding, FloatArray, History, IntArray, Severity
from lightning_gradexplode.records.finding import NONFINITE_SIGNS

ONSET = 4
"""Number of steps from the first critical finding on that show how an incident began."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Values of one quantity by step, oldest first, NaN where it was not measured or not finite.

    Args:
        step: Shape ``(steps,)``.
        value: Shape ``(steps,)``.
    """

    step: IntArray
    value: FloatArray

    def __len__(self) -> int:
        return len(self.step)

    @property
    def finite(self) -> Curve:
        """The part with finite values."""
        kept = np.isfinite(self.value)
        return Curve(self.step[kept], self.value[kept])

    def before(self, step: int) -> Curve:
        """Return the part with steps below `step`."""
        kept = self.step < step
        return Curve(self.step[kept], self.value[kept])

    def since(self, step: int) -> Curve:
        """Return the part with steps of `step` and above."""
        kept = self.step >= step
        return Curve(self.step[kept], self.value[kept])

    def at(self, step: int) -> float | None:
        """Return the value at a step, None if none was measured."""
        found = self.value[self.step == step]
        return float(found[-1]) if len(found) and not math.isnan(found[-1]) else None

    @property
    def first(self) -> float | None:
        """The first finite value."""
        values = self.finite.value
        return float(values[0]) if len(values) else None

    @property
    def last(self) -> float | None:
        """The last finite value."""
        values = self.finite.value
        return float(values[-1]) if len(values) else None

    @property
    def median(self) -> float | None:
        """The median of the finite values."""
        values = self.finite.value
        return float(np.median(values)) if len(values) else None

    @property
    def greatest(self) -> float | None:
        """The largest finite value."""
        values = self.finite.value
        return float(values.max()) if len(values) else None

    @property
    def least(self) -> float | None:
        """The smallest finite value."""
        values = self.finite.value
        return float(values.min()) if len(values) else None


def fifths(values: FloatArray) -> list[float]:
    """Return the medians of five parts of a series."""
    return [float(np.median(part)) for part in np.array_split(values, 5)]


def last_level(values: FloatArray) -> float:
    """Return the median of the last fifth of a series."""
    return float(np.median(values[-len(values) // 5 :]))


def critical_step(evidence: Evidence) -> int:
    """Return the step of the first critical finding, or the step of the incident if there is none."""
    steps = [finding.step for finding in evidence.findings if finding.severity is Severity.CRITICAL]
    return min(steps, default=evidence.step)


def first_nonfinite(evidence: Evidence) -> Finding | None:
    """Return the finding of the first quantity that was not finite: within a step, loss before gradient before weight.

    An overflow that a gradient scaler expects has severity INFO and does not count.
    """
    found = [one for one in evidence.findings if one.sign in NONFINITE_SIGNS and one.severity > Severity.INFO]
    return min(found, key=lambda one: (one.step, NONFINITE_SIGNS.index(one.sign)), default=None)


def signs(evidence: Evidence) -> set[str]:
    """Return the signs that were found."""
    return {finding.sign for finding in evidence.findings}


def is_critical(evidence: Evidence) -> bool:
    """Return whether there was a critical finding."""
    return any(finding.severity is Severity.CRITICAL for finding in evidence.findings)


def failing_step(evidence: Evidence) -> int:
    """Return the end of the onset: the step after the last one that is no consequence of the failure.

    That is the first step at which something was not finite, but not long after the first critical finding; without
    either, the step after the last one that was recorded.
    """
    found = first_nonfinite(evidence)
    last = [int(history.step[-1]) for history in evidence.history if len(history.step)]
    ends = [max([evidence.now, *last]) + 1]
    ends += [] if found is None else [found.step]
    ends += [critical_step(evidence) + ONSET] if is_critical(evidence) else []
    return min(ends)


def history_at_fault(evidence: Evidence) -> int | None:
    """Return the index of the optimizer whose parameters a finding names, or whose gradients have grown the most.

    Returns:
        None if there is no history.
    """
    if not evidence.history and not evidence.first:
        return None
    for finding in evidence.findings:
        if finding.severity < Severity.WARNING or finding.where is None:
            continue
        for place, history in enumerate(evidence.history):
            if any(name == finding.where or name.startswith(f"{finding.where}.") for name in history.parameters):
                return place
    count = max(len(evidence.history), len(evidence.first))
    return max(range(count), key=lambda place: _growth(curve(evidence, "grad_norm", optimizer=place)))


def curve(evidence: Evidence, name: str, optimizer: int | None = None) -> Curve:
    """Return a recorded quantity of the optimizer at fault: the first steps of the run, then the last ones.

    Args:
        evidence: The evidence.
        name: Name of the quantity in `History.values`.
        optimizer: Index of another optimizer.

    Returns:
        Of no steps if the quantity was not recorded; steps after the end of a critical incident are left out.
    """
    place = history_at_fault(evidence) if optimizer is None else optimizer
    if place is None:
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    early = [_part(evidence.first[place], name)] if place < len(evidence.first) else []
    late = [_part(evidence.history[place], name)] if place < len(evidence.history) else []
    if early and late and len(late[0]):
        early = [early[0].before(int(late[0].step[0]))]
    parts = [part for part in (*early, *late) if len(part)]
    if not parts:
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    whole = Curve(np.concatenate([one.step for one in parts]), np.concatenate([one.value for one in parts]))
    return whole.before(evidence.now + 1) if is_critical(evidence) else whole


def loss_curve(evidence: Evidence) -> Curve:
    """Return the loss; where none is known, as in manual optimization, the logged one that has moved the most."""
    loss = curve(evidence, "loss")
    if len(loss.finite):
        return loss
    named = [one for name, one in logged_curves(evidence).items() if "loss" in name.lower() and len(one.finite)]
    return max(named, key=lambda one: float(np.ptp(one.finite.value)), default=loss)


def logged_curves(evidence: Evidence) -> dict[str, Curve]:
    """Return the scalars that the user's module logged, by name."""
    names = {name for history in (*evidence.history, *evidence.first) for name in history.values}
    return {name.removeprefix("logged/"): curve(evidence, name) for name in sorted(names) if name.startswith("logged/")}


def _part(history: History, name: str) -> Curve:
    values = history.values.get(name)
    if values is None or len(values) != len(history.step):
        return Curve(np.zeros(0, np.int64), np.zeros(0))
    return Curve(np.asarray(history.step, np.int64), np.asarray(values, np.float64))


def _growth(norms: Curve) -> float:
    """Return the last value over the first one; a last value that is not finite counts as infinite growth."""
    if not len(norms):
        return 0.0
    first, last = norms.first, float(norms.value[-1])
    if not first or first <= 0:
        return 0.0
    return last / first if math.isfinite(last) else math.inf
