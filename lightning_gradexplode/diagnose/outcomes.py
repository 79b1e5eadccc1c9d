"""The outcome of the actions of responses: whether the run was stable after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightning_gradexplode.records import Attempt, History, Severity

HELPED_AFTER = 20
"""Number of steps without a CRITICAL finding after which an action has helped."""

REMEDIES = frozenset({"skip", "rollback", "reduce-lr"})
"""Actions that keep a run alive; the others only report or end it."""


def with_outcomes(attempts: Sequence[Attempt], histories: Sequence[History]) -> tuple[Attempt, ...]:
    """Return the actions, with whether each has helped.

    An action has not helped if a CRITICAL finding or another remedy followed within 20 steps. It has if there was
    neither in 20 steps; as long as there are fewer steps, it is not known.

    Args:
        attempts: The actions, oldest first.
        histories: The last steps of each optimizer; ``severity`` is read.
    """
    steps = np.concatenate([one.step for one in histories]) if histories else np.zeros(0, np.int64)
    severities = [one.values.get("severity", np.zeros(len(one.step))) for one in histories]
    critical = steps[np.concatenate(severities) >= Severity.CRITICAL] if histories else steps
    last = int(steps.max()) if len(steps) else -1
    tried = [one.step for one in attempts if one.action in REMEDIES]

    def helped(attempt: Attempt) -> bool | None:
        if any(attempt.step < step <= attempt.step + HELPED_AFTER for step in (*critical.tolist(), *tried)):
            return False
        return True if last >= attempt.step + HELPED_AFTER else None

    return tuple(replace(one, helped=helped(one)) if one.action in REMEDIES else one for one in attempts)
