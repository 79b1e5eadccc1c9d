"""Agreement of all processes on findings and thresholds, although a detector or policy may fail on one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip import GuardedPolicy
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.note import Note
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.part_guard import is_own
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.records.log import logger


class Agreement:
    """Makes all processes use the same findings and thresholds, with one small collective for each.

    Detectors and policies of this package decide the same from equal numbers. If one of them may fail on a single
    process, there is a collective wherever different decisions would lead to different weights or to a deadlock. Which
    detectors of this package are switched off is in the `Note` of the next step's exchange, at no extra cost; until
    then no finding may lead to a collective.

    Args:
        exchange: The exchange between processes.
        arguments: The monitor's arguments.

    Attributes:
        on_policy: Whether the processes exchange the threshold of the clip policy at each step.
        by_notes: Whether findings of steps that are read after their update are agreed on in the next exchange.
    """

    def __init__(self, exchange: StepExchange, arguments: Arguments) -> None:
        several = exchange.world.size > 1
        policy = arguments.clip
        self._exchange = exchange
        self._signs = sorted({detector.sign for detector in arguments.detectors})
        self._has_own_detectors = not all(map(is_own, arguments.detectors))
        self._acts = not all(response.only_warns for response in arguments.responses)
        self._several = several
        self.by_notes = several and not self._has_own_detectors
        self._off: frozenset[str] = frozenset()  # signs of the detectors that are off on any process
        self.on_policy = several and policy is not None and not is_own(policy)
        self._is_logged = False

    def is_needed(self, step: Step) -> bool:
        """Return whether the processes exchange their findings at a step.

        They do with detectors of the user, whose results may differ, and if a finding leads to further collectives:
        those of a response, and the measurement of shards. They do not if the numbers are read after the update, since
        the device would have to wait.
        """
        if not self._several:
            return False
        is_sharded = step.parameters.shards.copies is not None
        return self._has_own_detectors or ((self._acts or is_sharded) and not step.is_deferred)

    def note(self, measures_modules: bool) -> int:
        """Return the `Note` of a step to the other processes, as a number.

        Args:
            measures_modules: Whether this process measures error gradients of modules.
        """
        return Note(measures_modules, self._off).number(self._signs)

    def record_failures(self, detectors: DetectorSet) -> None:
        """Record which detectors have been switched off, for the next `note`."""
        if self.by_notes:
            self._off |= set(self._signs).difference(detector.sign for detector in detectors.detectors)

    def receive(self, notes: Sequence[int], states: Sequence[OptimizerState]) -> bool:
        """Switch off the detectors that are off on another process.

        Args:
            notes: The notes of all processes, as numbers.
            states: The optimizers, with their detectors.

        Returns:
            Whether error gradients of modules are measured on all processes.
        """
        measures_modules, off = Note.of_all(notes, self._signs)
        if off != self._off:
            self._off |= off
            for state in states:
                for detector in state.detectors.detectors:
                    if self.is_off(detector.sign):
                        state.detectors.switch_off(detector, "it failed on another process")
                state.log_failures()
        return measures_modules

    @property
    def needs_notes(self) -> bool:
        """Whether the processes have to exchange their notes if no step follows soon."""
        return self.by_notes and self._exchange.has_started

    def exchange_notes(self, states: Sequence[OptimizerState]) -> None:
        """Exchange the notes by themselves; a collective call where `needs_notes`."""
        if self.needs_notes:
            self._exchange.has_started = False
            notes = self._exchange.agree(np.array([float(self.note(False))]))[:, 0]
            self.receive([int(note) for note in notes], states)

    def withdraw_notes(self) -> None:
        """Participate in `exchange_notes` to report that the monitor of this process has failed."""
        if self.needs_notes:
            self._exchange.withdraw_from_agreement(1)

    def is_off(self, sign: str) -> bool:
        """Return whether the detector of a sign is off on any process, as far as it is known here."""
        return sign in self._off

    def counted(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Return the findings of those detectors that are not off on any process."""
        return [one for one in findings if not self.is_off(one.sign)] if self._off else findings

    def findings(self, detect: Callable[[], list[Finding]], detectors: DetectorSet) -> list[Finding]:
        """Return the findings of a step that all processes have, each with the lowest severity of all processes.

        A detector that is switched off on one process is switched off on all. Call it if `is_needed`.

        Args:
            detect: Returns the findings of this process.
            detectors: The detectors that it calls.
        """
        signs = self._signs
        try:
            found = detect()
        except Exception:
            self._exchange.withdraw_from_agreement(len(signs) + 1)
            raise
        active = {detector.sign for detector in detectors.detectors}
        severities = dict.fromkeys([*signs, ""], 0.0)
        for finding in found:
            sign = finding.sign if finding.sign in severities else ""  # a sign that is not its detector's
            severities[sign] = max(severities[sign], float(finding.severity))
        severities |= {sign: -1.0 for sign in signs if sign not in active}
        agreed = dict(zip(severities, self._exchange.agree(np.array([*severities.values()])).min(axis=0), strict=True))
        for detector in detectors.detectors:
            if agreed[detector.sign] < 0:
                detectors.switch_off(detector, "it failed on another process")
        lowest = [agreed.get(finding.sign, agreed[""]) for finding in found]
        return [
            replace(finding, severity=Severity(min(int(finding.severity), int(least))))
            for finding, least in zip(found, lowest, strict=True)
            if least > 0
        ]

    def threshold(self, value: float | None) -> float | None:
        """Return the lowest threshold of all processes; None if any has none.

        Args:
            value: The threshold of this process.
        """
        if not self.on_policy:
            return value
        agreed = float(self._exchange.agree(np.array([math.nan if value is None else value])).min())
        if not math.isnan(agreed):
            return agreed
        if value is not None and not self._is_logged:
            self._is_logged = True
            logger.warning("gradexplode: nothing is clipped at steps where the policy of another process has no value")
        return None

    def clips_alike(self, policy: GuardedPolicy) -> bool:
        """Return whether a policy that clips tensors works on all processes or on none; else it is switched off.

        Call it after the policy has clipped. If it returns False, the gradients of the processes differ.
        """
        if not self.on_policy:
            return True
        is_off = self._exchange.agree(np.array([float(policy.is_off)]))[:, 0] > 0
        if is_off.any():
            policy.switch_off("it failed on another process")
        return bool(is_off.all() or not is_off.any())
