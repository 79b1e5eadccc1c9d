"""How far the loss has come down in a run without an incident."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.diagnose.curves import loss_curve
from lightning_gradexplode.records import Evidence

LEARNED = 0.25
"""Share of its first values to which the loss of a run that learns comes down."""

LEARNED_LITTLE = 0.6
"""Share of its first values above which the loss has come down by little."""

UNLEARNED = 0.9
"""Share of its first values above which the loss has not come down."""

ENOUGH = 50
"""Number of steps after which a run that learns has begun to."""


def learned(evidence: Evidence) -> float:
    """Return the median of the last fifth of the losses over that of the first five; 0 where that is not known."""
    values = loss_curve(evidence).finite.value
    if len(values) < ENOUGH or not float(np.median(values[:5])) > 0:
        return 0.0
    return float(np.median(values[-len(values) // 5 :]) / np.median(values[:5]))
