"""All detectors of one optimizer, each called once per step, with the baselines that they share."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.detect.adaptive_interval import AdaptiveInterval
from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.baselines import Baselines
from lightning_gradexplode.detect.calm_range import CalmRange
from lightning_gradexplode.detect.grad_norm_ema import GradNormEMA
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.records.state import Stateful, copied, loaded, plain
from lightning_gradexplode.records.text import describe

CONSPICUOUS = 10.0
"""Rise of the gradient at one module from which an explosion is located there."""


class DetectorSet(Stateful):
    """The detectors of one optimizer, their baselines, and the usual gradient norms of its parameters.

    Of each step, in the order of the steps, these are called:

    1. `screen`, as soon as loss and gradient norm are known. It sets whether the weights are to be measured after the
       update, and tells whether the step can show no rise. If so, and nothing else is measured, what follows may be
       called later, for several steps together.
    2. `check_before_update`. It updates the baselines and calls each detector whose fields are known; the others wait.
       It calls `screen` unless that was done.
    3. `check_sign`, if the gradients have changed since, for one sign.
    4. `check_after_update`. It updates the baselines of the weights and calls the detectors that have waited.

    A detector that raises, or returns anything but a `Finding` or None, is switched off; the others go on.

    Args:
        detectors: Copied, so that each optimizer has detectors with a state of their own.

    Attributes:
        needs_weights: Whether the norms of the weights are to be measured after the current step.
        failures: ``(sign, what failed)`` of each detector that was switched off, or whose state could not be saved.
        unsaved: Signs of the detectors whose state could not be saved.
    """

    not_saved = ("_waiting", "_loss_is_known", "_values_of", "_is_quiet", "_calm_range", "_highest_calm_loss")

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = [copied(detector) for detector in detectors]
        self.needs_weights = True
        self.failures: list[tuple[str, str]] = []
        self.unsaved: list[str] = []
        self.reads = tuple({field for detector in self.detectors for field in detector.reads})
        self._values_of = operator.attrgetter("step", "step", *self.reads)  # always a tuple
        self._waiting: list[Detector] = []
        self._loss_is_known = False
        self._is_quiet = False
        self._calm_range = CalmRange()
        self._reset()

    def _reset(self) -> None:
        """Clear all that the detectors share."""
        self._baselines = Baselines()
        self._grad_norms = GradNormEMA()
        self._interval = AdaptiveInterval()
        self._steepest_module: str | None = None
        self._steepest_rise = 0.0
        self._highest_calm_loss = -math.inf
        self._share()

    def _share(self) -> None:
        for detector in self.detectors:
            detector.shared = self._baselines

    @property
    def needs_start(self) -> bool:
        """Whether the norms of the weights before the next step are needed: of the first step."""
        return self._interval.has_no_measurement

    @property
    def expects_weights(self) -> bool:
        """Whether the norms of the weights are needed after a step that is not read yet."""
        return self._interval.overdue

    def screen(self, loss: float | None, grad_norm: float | None) -> bool:
        """Set `needs_weights` for a new step, and return whether the step can show no rise.

        Of such a step, the loss is at most one unit above the start, loss and gradient norm are in the `CalmRange`, and
        the last evaluated step had no warning. If nothing else is measured, its check before the update may be made
        later, in the order of the steps, and that after the update may be omitted. If the weights are measured, both
        are to be made before the next step, and before any other decision unless `weights_are_steady`.
        """
        try:
            self.needs_weights = self._interval.due(loss, grad_norm)
        except Exception as error:
            self._start_fresh(error)
        is_inside = self._calm_range.contains(loss, grad_norm)
        is_low = loss is not None and loss <= self._highest_calm_loss
        is_first = self.needs_weights and self.needs_start
        return is_inside and is_low and self._is_quiet and not is_first

    def weights_are_steady(self, weight_norm: float) -> bool:
        """Return whether the norm of the weights has changed little since the last measurement."""
        return self._interval.is_steady(weight_norm)

    def check_before_update(self, record: StepRecord, is_new: bool = True) -> list[Finding]:
        """Return the findings of a step before the optimizer steps.

        Args:
            record: The step.
            is_new: Whether `screen` was not called for it.
        """
        if is_new:
            self.screen(record.loss, record.grad_norm)
        self._waiting = self.detectors
        try:
            self._update_before(record)
        except Exception as error:
            self._start_fresh(error)
        findings = self._check(record)
        self._is_quiet = not findings or all(finding.severity < Severity.WARNING for finding in findings)
        norms = record.per_parameter.get("grad_norm")
        if norms is not None and self._is_quiet:
            self._grad_norms.update(norms)
        self._highest_calm_loss = self._baselines.loss.above(units=1.0)
        return findings

    def check_after_update(self, record: StepRecord, came_late: bool = False) -> list[Finding]:
        """Return the findings of a step after the optimizer has stepped, by the detectors that have waited for it.

        Args:
            record: The step.
            came_late: Whether `check_before_update` was called after the optimizer had stepped.
        """
        try:
            self._update_after(record, came_late)
        except Exception as error:
            self._start_fresh(error)
        return self._check(record) if self._waiting else []

    def _update_before(self, record: StepRecord) -> None:
        self._loss_is_known = record.loss is not None
        if self._loss_is_known:
            self._baselines.update_loss(record)
        if record.module_gradients is not None:
            self._steepest_module, self._steepest_rise = record.module_gradients.steepest() or (None, 0.0)

    def _update_after(self, record: StepRecord, came_late: bool) -> None:
        if not self._loss_is_known:
            self._baselines.update_loss(record)
        if record.weight_norm is not None or record.weight_norm_before is not None:
            self._baselines.update_weights(record)
        if record.weight_norm is not None:
            self._interval.measured(record.weight_norm)
        elif self.needs_weights and came_late:
            self._interval.missed()

    def _start_fresh(self, error: Exception) -> None:
        """Reset what the detectors share after its update has failed, such as with a faulty checkpoint state."""
        self.failures.append(("baselines", f"starts fresh: {describe(error)}"))
        self._reset()

    def _check(self, record: StepRecord) -> list[Finding]:
        waiting: list[Detector] = []
        findings: list[Finding] = []
        if not self._waiting:
            return findings
        missing = self._missing(record)
        for detector in self._waiting:
            if missing and not missing.isdisjoint(detector.reads):
                waiting.append(detector)
                continue
            try:
                finding = detector.check(record)
                if finding is not None:
                    finding = _checked(finding)
                    findings.append(self._located(finding, record) if detector.locates_growth else finding)
            except Exception as error:
                self.switch_off(detector, describe(error))
        self._waiting = waiting
        return findings

    def check_sign(self, record: StepRecord, sign: str) -> list[Finding]:
        """Return the findings of one sign in a step whose numbers have changed, even if they were checked before."""
        waiting = self._waiting
        self._waiting = [detector for detector in self.detectors if detector.sign == sign]
        findings = self._check(record)
        self._waiting = [detector for detector in waiting if detector in self.detectors]
        return findings

    def _missing(self, record: StepRecord) -> set[str]:
        """Return the fields that are not known of a step."""
        are_none = map(operator.is_, self._values_of(record)[2:], itertools.repeat(None))
        return set(itertools.compress(self.reads, are_none))

    def can_check_after_update(self, record: StepRecord) -> bool:
        """Return whether a detector waits for the update of a step and has all its fields."""
        if not self._waiting:
            return False
        missing = self._missing(record)
        return any(missing.isdisjoint(detector.reads) for detector in self._waiting)

    def switch_off(self, detector: Detector, reason: str) -> None:
        """Switch a detector off; it is named in `failures`."""
        self.failures.append((detector.sign, f"is switched off for this fit: {reason}"))
        self.detectors = [other for other in self.detectors if other is not detector]
        self._waiting = [other for other in self._waiting if other is not detector]

    def _located(self, finding: Finding, record: StepRecord) -> Finding:
        """Return the finding with the module at which the gradient rose most when last measured, else the parameter."""
        norms = record.per_parameter.get("grad_norm")
        if finding.where is not None or norms is None:
            return finding
        if self._steepest_rise > CONSPICUOUS:
            return replace(finding, where=self._steepest_module)
        rises = self._grad_norms.rises(norms)
        if np.isnan(rises).all():
            return finding
        return replace(finding, where=record.parameters[int(np.nanargmax(rises))])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all detectors in plain values; one that cannot be saved is named in `failures`."""
        detectors = []
        for detector in self.detectors:
            try:
                detectors.append({"sign": detector.sign, "state": plain(detector.state_dict())})
            except Exception as error:
                if detector.sign not in self.unsaved:
                    self.unsaved.append(detector.sign)
                    self.failures.append((detector.sign, f"cannot save its state: {describe(error)}"))
        return {**super().state_dict(), "detectors": detectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Load what `state_dict` returned, also of version 0.1.0.

        Returns:
            Names of the parts that are not restored: they are not in the state, or do not fit.
        """
        fresh = super().load_state_dict(state if "_baselines" in state else {**state, **_from_0_1_0(state)})
        remaining = [entry for entry in _listed(state.get("detectors")) if isinstance(entry, Mapping)]
        for place, detector in enumerate(self.detectors):
            entry = next((entry for entry in remaining if entry.get("sign") == detector.sign), {})
            remaining = [other for other in remaining if other is not entry]
            self.detectors[place], missing = loaded(detector, entry.get("state"))
            fresh += [f"{detector.sign}.{name}" if name else detector.sign for name in missing]
        self._share()
        return fresh


def _checked(finding: object) -> Finding:
    """Return a finding with its fields in their types.

    Raises:
        TypeError: The value is not a `Finding`, or a field has the wrong type.
    """
    if not isinstance(finding, Finding):
        raise TypeError(f"check must return a Finding or None, got {type(finding).__name__}")
    if not isinstance(finding.severity, Severity):
        raise TypeError(f"a finding must have a Severity, got {finding.severity!r}")
    texts = [finding.sign, finding.message, *([] if finding.where is None else [finding.where])]
    if not all(isinstance(text, str) for text in texts) or isinstance(finding.value, str):
        raise TypeError("a finding's sign, message and where must be strings, and its value and limit numbers")
    if (type(finding.step), type(finding.value), type(finding.limit)) == (int, float, float):
        return finding  # as nearly always
    return replace(
        finding,
        step=operator.index(finding.step),
        value=float(finding.value),
        limit=float(finding.limit),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _from_0_1_0(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the detectors share from a state of 0.1.0, in which each detector had baselines of its own."""
    own = {
        name: entry["state"][name]
        for entry in _listed(state.get("detectors"))
        for name in ("_loss", "_weights")
        if isinstance(entry, Mapping) and isinstance(entry.get("state"), Mapping) and name in entry["state"]
    }
    module, rise = [*_listed(state.get("steepest")), None, 0.0][:2]
    return {
        "_baselines": own,
        "_grad_norms": state.get("levels"),
        "_interval": state.get("attention"),
        "_steepest_module": module,
        "_steepest_rise": rise,
    }
