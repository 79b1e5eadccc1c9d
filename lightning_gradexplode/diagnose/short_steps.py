"""Whether a loss has risen in steps of gradient descent that were too short to overshoot."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.diagnose.curves import curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.optimizers import is_plain_descent
from lightning_gradexplode.records import Evidence

FIRST_LOSSES, RISEN, FIRST_STEPS = 3, 2.0, 2
"""Number of first losses, multiple of their median from which a loss has risen, and number of steps at which it has
just done so."""

MIN_CHANGE = 1.0
"""Relative change of the loss, to first order, below which a step cannot have raised it that far.

Beyond the minimum of a parabola, a step of gradient descent raises the loss if it is more than twice as long as to the
minimum. To first order it changes a loss that has doubled in this way by at least twice its size.
"""


def rises_in_short_steps(evidence: Evidence) -> bool:
    """Return whether the last rise of the loss began in short steps, none of them long enough to overshoot.

    The length of a step is known from the gradient only for gradient descent without momentum. A loss that may be
    negative is not looked at.
    """
    loss = loss_curve(evidence).before(failing_step(evidence)).finite
    if not is_plain_descent(evidence.run) or len(loss) < 2 * FIRST_LOSSES or loss.value.min() <= 0:
        return False
    is_low = loss.value < RISEN * float(np.median(loss.value[:FIRST_LOSSES]))
    start = int(np.flatnonzero(is_low)[-1]) + 1 if is_low.any() else 0
    rate, norm = curve(evidence, "learning_rate"), curve(evidence, "grad_norm")
    changes = [
        (rate.at(step) or 0.0) * (norm.at(step) or np.inf) ** 2 / value
        for step, value in zip(loss.step[start:].tolist(), loss.value[start:].tolist(), strict=True)
    ][:FIRST_STEPS]
    return len(changes) == FIRST_STEPS and max(changes) < MIN_CHANGE
