"""What all processes of a run decide alike, although a part may fail or decide differently on one of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.distributed.exchange import ProcessFailedError, StepExchange
from lightning_gradexplode.distributed.process_group import ProcessGroup
from lightning_gradexplode.records import Finding, Severity

logger = logging.getLogger("lightning_gradexplode")

_PACKAGE = __name__.partition(".")[0]


class Agreement:
    """Makes all processes go by the same findings and thresholds, with one small collective for each.

    From equal numbers the package's own parts decide alike, so that there is a collective only where a user's own part
    is used.

    Args:
        exchange: The exchange between processes.
        arguments: The monitor's arguments.
    """

    def __init__(self, exchange: StepExchange, arguments: Arguments) -> None:
        several = exchange.world.size > 1
        self._exchange = exchange
        self._signs = sorted({detector.sign for detector in arguments.detectors})
        self._on_findings = several and not all(map(_is_own, arguments.detectors))
        self._on_thresholds = several and arguments.clip is not None and not _is_own(arguments.clip)
        self._is_logged = False

    def findings(self, detect: Callable[[], list[Finding]], detectors: DetectorSet) -> list[Finding]:
        """Return the findings of a step that all processes have, each with the lowest severity that any has.

        A detector that is switched off on one process is switched off on all.

        Args:
            detect: Returns the findings of this process.
            detectors: The detectors that it calls.
        """
        if not self._on_findings:
            return detect()
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
        if not self._on_thresholds:
            return value
        agreed = float(self._exchange.agree(np.array([math.nan if value is None else value])).min())
        if not math.isnan(agreed):
            return agreed
        if value is not None and not self._is_logged:
            self._is_logged = True
            logger.warning("gradexplode: nothing is clipped at steps where the policy of another process has no value")
        return None


def raise_together(world: ProcessGroup, error: Exception | None) -> None:
    """Raise an error on all processes if one of them has met one; a collective call.

    Args:
        world: The processes of the run.
        error: What this process has met, None for nothing.

    Raises:
        ProcessFailedError: Another process has met an error.
    """
    failed = np.flatnonzero(world.gather(np.array([error is not None], dtype=np.float64)))
    if error is not None:
        raise error
    if len(failed):
        raise ProcessFailedError(f"the monitor of rank {failed[0]} has failed")


def _is_own(part: object) -> bool:
    """Return whether a part is one of the package."""
    return type(part).__module__.partition(".")[0] == _PACKAGE
