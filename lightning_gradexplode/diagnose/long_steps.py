"""Steps of gradient descent that are far longer than the loss allows."""

from __future__ import annotations

from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.trends import starts_huge
from lightning_gradexplode.records import Evidence

BEYOND = 4.0
"""Change of the loss to first order, in multiples of the loss, from which a step raises a parabola above zero."""

ORDINARY = 20.0
"""Multiple of the first loss up to which the loss has not exploded yet."""

RISES = 3.0
"""Growth of the loss from the step to the next one from which it went too far."""


def overlong_step(evidence: Evidence) -> str | None:
    """Return the size of a step of gradient descent that went too far, at a loss that had not exploded yet.

    To first order, a step changes the loss by its length times the norm of the gradient. The minimum of a parabola is
    at twice what the loss can fall by, and from twice of that on the step raises the loss.

    Returns:
        A sentence, None without such a step.
    """
    loss, norm, rate = loss_curve(evidence).finite, curve(evidence, "grad_norm"), curve(evidence, "learning_rate")
    kinds = {one.kind for one in evidence.run.optimizers}
    if kinds != {"SGD"} or len(evidence.run.optimizers) > 1 or not len(loss) or starts_huge(evidence):
        return None
    failed, first = first_nonfinite(evidence), loss.first or 0.0
    end = evidence.now + 1 if failed is None else failed.step
    for step, value in zip(loss.step.tolist(), loss.value.tolist(), strict=True):
        gradient, length, after = norm.at(step), rate.at(step), loss.at(step + 1)
        if gradient is None or length is None or step >= end or not 0 < value <= ORDINARY * first:
            continue
        change = length * gradient**2 / value
        has_risen = after is not None and after >= RISES * value
        is_lost = failed is not None and after is None and step + 1 == end
        if change >= BEYOND and (has_risen or is_lost):
            rise = f"rose to {after:.4g}" if after is not None and has_risen else "was not finite"
            return (
                f"At step {step} the loss was {value:.4g}, and the update changes it by {change:.3g} times that to "
                f"first order: it goes far beyond the minimum, and the next loss {rise}."
            )
    return None
