"""A spike of the gradient at an ordinary loss, after which the run has lost what it had learned."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.diagnose.curves import curve, is_critical, loss_curve
from lightning_gradexplode.diagnose.learning import ENOUGH
from lightning_gradexplode.diagnose.remedies.rate import rate_remedies
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence

MIN_LOST = 0.5
"""Share of the decrease of the loss that a step has undone, from which its update was the failure."""

MIN_DECREASE = 0.05
"""Share of the first losses by which the loss has come down in a run that had learned something."""

LATELY = 20
"""Number of steps whose losses are the ordinary ones."""


def has_ordinary_loss(evidence: Evidence, step: int) -> bool:
    """Return whether the loss of a step is within those of the steps before it."""
    losses = loss_curve(evidence).finite
    loss, earlier = losses.at(step), losses.before(step).value[-LATELY:]
    return loss is not None and len(earlier) > 0 and loss <= float(earlier.max())


def progress_lost_by_update(evidence: Evidence) -> Cause | None:
    """Return the cause if the update of a spike has undone most of what the loss had come down by.

    The loss of the step itself is ordinary, so that its batch is no outlier, and other data do not begin with it.
    """
    spike = next((one for one in evidence.findings if one.sign == "gradient-spike"), None)
    before = loss_curve(evidence).before(evidence.step).finite.value
    if spike is None or is_critical(evidence) or evidence.later_loss is None or len(before) < ENOUGH:
        return None
    start, level = float(np.median(before[:5])), float(np.median(before[-LATELY:]))
    decrease, rate = start - level, curve(evidence, "learning_rate").at(spike.step)
    has_lost = decrease > MIN_DECREASE * abs(start) and evidence.later_loss - level >= MIN_LOST * decrease
    if rate is None or not has_lost or not has_ordinary_loss(evidence, spike.step):
        return None
    return Cause(
        "learning-rate",
        None,
        (
            f"The loss had come down from {start:.4g} to {level:.4g}, and was ordinary at step {spike.step}; after the "
            f"update of this step, with a gradient norm of {spike.value:.3g}, it stays at {evidence.later_loss:.4g}.",
            f"The learning rate of this step is {rate:g}.",
        ),
        0.5,
        rate_remedies(evidence, trend(evidence)),
    )
