"""All detectors of a run: one set for each optimizer, each asked once a step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.detect.adaptive_interval import AdaptiveInterval
from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.rolling_quantiles import GradNormEMA
from lightning_gradexplode.records import Finding, Severity, StepRecord

CONSPICUOUS = 10.0
"""Rise of the gradient at one module from which an explosion is said to begin there."""


class DetectorSet:
    """The detectors of one optimizer, and the usual gradient norms of its parameters.

    Args:
        detectors: Copied, so that each optimizer's steps are judged by a memory of their own.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = copy.deepcopy(list(detectors))
        self.wants_weights = True
        self._attention = AdaptiveInterval()
        self._levels = GradNormEMA()
        self._steepest: list[Any] = []
        self._waiting: list[Detector] = []
        self._reads = tuple({field for detector in self.detectors for field in detector.reads})
        self._noting = [d for d in self.detectors if type(d).measured is not Detector.measured]

    @property
    def wants_start(self) -> bool:
        """Whether the norms of the weights as they are before the next step are wanted: of the first step."""
        return self._attention.knows_nothing

    @property
    def expects_weights(self) -> bool:
        """Whether the norms of the weights are wanted after a step that is not known yet."""
        return self._attention.overdue

    def begin(self, record: StepRecord) -> list[Finding]:
        """Judge a new step by what is known before the optimizer steps, and set `wants_weights` for after it."""
        self._waiting = self.detectors
        self.wants_weights = self._attention.due(record)
        if record.module_gradients is not None:
            self._steepest = list(record.module_gradients.steepest() or ())
        findings = self._ask(record)
        norms = record.per_parameter.get("grad_norm")
        if norms is not None and not any(finding.severity >= Severity.WARNING for finding in findings):
            self._levels.update(norms)
        return findings

    def proceed(self, record: StepRecord, came_late: bool = False) -> list[Finding]:
        """Judge a step once it is over, by the detectors that were not asked yet and whose numbers are known now.

        Args:
            record: The step.
            came_late: Whether the optimizer had stepped before the step was judged at all.
        """
        if record.weight_norm is not None:
            self._attention.saw(record.weight_norm)
        elif self.wants_weights and came_late:
            self._attention.missed()
        findings = self._ask(record)
        for detector in self._noting:
            detector.measured(record)
        return findings

    def _ask(self, record: StepRecord) -> list[Finding]:
        missing = {field for field in self._reads if getattr(record, field) is None}
        waiting, findings = [], []
        for detector in self._waiting:
            if missing and not missing.isdisjoint(detector.reads):
                waiting.append(detector)
            elif (finding := detector.check(record)) is not None:
                findings.append(self._located(finding, record) if detector.blames_growth else finding)
        self._waiting = waiting
        return findings

    def _located(self, finding: Finding, record: StepRecord) -> Finding:
        """Name the module at which the gradient rose most when last seen, or else the parameter whose gradient has."""
        norms = record.per_parameter.get("grad_norm")
        if finding.where is not None or norms is None:
            return finding
        if self._steepest and self._steepest[1] > CONSPICUOUS:
            return replace(finding, where=self._steepest[0])
        rises = self._levels.rises(norms)
        if np.isnan(rises).all():
            return finding
        return replace(finding, where=record.parameters[int(np.nanargmax(rises))])

    def state_dict(self) -> dict[str, Any]:
        """Give the memory of all detectors in plain values."""
        detectors = [{"sign": d.sign, "state": d.state_dict()} for d in self.detectors]
        return {
            "detectors": detectors,
            "steepest": list(self._steepest),
            "levels": self._levels.state_dict(),
            "attention": self._attention.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; a detector that the checkpoint does not know starts anew."""
        remaining = list(state["detectors"])
        for detector in self.detectors:
            match = next((entry for entry in remaining if entry["sign"] == detector.sign), None)
            if match is not None:
                remaining.remove(match)
                detector.load_state_dict(match["state"])
        self._steepest = list(state["steepest"])
        self._levels.load_state_dict(state["levels"])
        self._attention.load_state_dict(state["attention"])


class Episodes:
    """Tells people of a sign once an episode: again only when it gets worse, or comes back after a calm while.

    Args:
        calm: Number of steps without a sign that end its episode.
    """

    def __init__(self, calm: int = 20) -> None:
        self.calm = calm
        self._last_seen: dict[str, int] = {}
        self._worst: dict[str, int] = {}

    def news(self, findings: Sequence[Finding]) -> list[Finding]:
        """Give those of a step's findings that begin an episode or make one worse."""
        return [finding for finding in findings if self._is_news(finding)]

    def _is_news(self, finding: Finding) -> bool:
        last = self._last_seen.get(finding.sign)
        begins = last is None or finding.step - last > self.calm
        worse = finding.severity > self._worst.get(finding.sign, 0)
        self._last_seen[finding.sign] = finding.step
        if begins or worse:
            self._worst[finding.sign] = int(finding.severity)
        return begins or worse

    def state_dict(self) -> dict[str, Any]:
        """Give the open episodes in plain values."""
        return {"last_seen": dict(self._last_seen), "worst": dict(self._worst)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._last_seen = dict(state["last_seen"])
        self._worst = dict(state["worst"])
