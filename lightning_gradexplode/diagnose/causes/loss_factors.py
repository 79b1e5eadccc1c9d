"""Numbers that the loss, or a term of it, is multiplied by."""

from __future__ import annotations

from lightning_gradexplode.diagnose.curves import curve
from lightning_gradexplode.diagnose.optimizers import uses_adaptive_optimizer
from lightning_gradexplode.records import Cause, Evidence

RAISED = ((100.0, 0.96), (10.0, 0.7))
"""Growths of a number during the run, and the confidence that its growth makes the loss explode."""


LARGE = 10.0
"""A number from which a term that is multiplied by it determines the length of a step of gradient descent."""


def large_factor(evidence: Evidence) -> float | None:
    """Return a large number that a term of the loss is multiplied by from the start, None without one.

    Optimizers that divide by the size of the gradient are excluded: the number cancels out.
    """
    largest = max((abs(1 / one) for one in evidence.loss_divisors or () if one), default=0.0)
    return largest if largest >= LARGE and not uses_adaptive_optimizer(evidence.run) else None


def raised_factor(evidence: Evidence) -> Cause | None:
    """Return the cause if a number that the loss or a term of it is multiplied by has grown far during the run.

    A number that grows up to one, as in a warm-up of a term, counts from one on only.
    """
    first, later = evidence.loss_divisors, evidence.later_loss_divisors
    is_scaled = len(curve(evidence, "loss_scale").finite) > 0  # by a scaler, whose factor is divided out again
    if not first or not later or len(first) != len(later) or len(evidence.run.optimizers) != 1 or is_scaled:
        return None
    factors = [(abs(1 / one), abs(1 / other)) for one, other in zip(first, later, strict=True) if one and other]
    if not factors:
        return None
    before, now = max(factors, key=lambda one: one[1] / max(one[0], 1.0))
    most = max(before, 1.0)
    confidence = next((value for growth, value in RAISED if now >= growth * most), None)
    if confidence is None:
        return None
    return Cause(
        "loss-without-floor",
        None,
        (
            f"The loss, or a term of it, was multiplied by {before:.3g} at the start and is by {now:.3g} now: "
            "loss and gradient grow with that number, whatever the weights are.",
        ),
        confidence,
        (f"bound the number: `factor = min(factor, {most:.3g})`, or divide the loss by the sum of all such numbers",),
    )
