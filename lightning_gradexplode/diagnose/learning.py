"""Whether a run has learned: how far its loss has decreased."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.diagnose.batch import targets
from lightning_gradexplode.diagnose.curves import last_level, loss_curve, signs
from lightning_gradexplode.diagnose.layers import untrained_loss
from lightning_gradexplode.records import Evidence

LEARNED = 0.25
"""Share of its first values, or of an untrained network's loss, to which the loss of a run that learns comes down."""

UNLEARNED = 0.9
"""Share of its first values above which the loss has not come down."""

ENOUGH = 50
"""Number of steps after which the loss of a run that learns has begun to decrease."""


def learned(evidence: Evidence, least: int = ENOUGH) -> float:
    """Return the median of the last fifth of the losses over that of the first five; 0 where that is not known.

    Args:
        evidence: The evidence.
        least: Number of losses below which it is not known.
    """
    values = loss_curve(evidence).finite.value
    if len(values) < least or not float(np.median(values[:5])) > 0:
        return 0.0
    return last_level(values) / float(np.median(values[:5]))


def has_learned(evidence: Evidence) -> bool:
    """Return whether the loss came down, after the incident, far below that of a network that has learned nothing."""
    usual = untrained_loss(evidence)
    if usual is None and len(targets(evidence)) == 1:
        (target,) = targets(evidence)
        spread, classes = target.usual_std or target.std or 0.0, (target.usual_greatest or target.greatest or 0.0) + 1
        is_label = "int" in target.dtype and 2 <= classes < 1e6
        usual = math.log(classes) if is_label else spread**2
    # Large gradients are no fault in a run that has learned with them, even a little.
    share = UNLEARNED if signs(evidence) <= {"backward-gain", "gradient-above-one"} else LEARNED
    first = loss_curve(evidence).first
    if "zero-gradient" in signs(evidence) and (evidence.later_loss or 0.0) > UNLEARNED * (first or math.inf):
        return False  # what is a low loss for others is that of a guess here
    return evidence.later_loss is not None and usual is not None and 0 <= evidence.later_loss < share * usual


def has_recovered(evidence: Evidence) -> bool:
    """Return whether the loss, after the incident, is at the level of the steps before it, which were calm for long.

    If that level is above the first losses, or if gradients stay zero, the run has not recovered.
    """
    if "zero-gradient" in signs(evidence):
        return False
    before = loss_curve(evidence).before(evidence.step).finite.value
    if evidence.later_loss is None or len(before) < ENOUGH or evidence.later_loss > float(before[:5].max()):
        return False
    lately = before[-20:]
    spread = float(np.ptp(lately))
    return float(lately.min()) - spread <= evidence.later_loss <= float(np.quantile(lately, 0.75))
