"""What the terminal says: two lines a finding, through Python's logging, so that users can route or silence it."""

from __future__ import annotations

import logging
import math

from lightning_gradexplode.records import Finding, Severity

logger = logging.getLogger("lightning_gradexplode")

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


def tell(finding: Finding, advice: str) -> None:
    """Log a finding: what happened where and when, and on a second line what to do about it."""
    where = f" in {finding.where}" if finding.where else ""
    limit = f" (limit {finding.limit:.3g})" if math.isfinite(finding.limit) and finding.limit else ""
    logger.log(
        _LEVELS[finding.severity],
        "gradexplode %s at step %d: %s%s: %s%s\n  -> %s",
        finding.severity.name,
        finding.step,
        finding.sign,
        where,
        finding.message,
        limit,
        advice,
    )
