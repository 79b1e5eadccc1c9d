"""Settings and state of an optimizer with which a run without an incident learns nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_gradexplode.diagnose.batch import targets
from lightning_gradexplode.diagnose.causes.optimization import LARGE_UPDATE, usual_rate
from lightning_gradexplode.diagnose.causes.optimizer import fresh_state
from lightning_gradexplode.diagnose.causes.precision import SMALLEST_CHANGE, weights_type
from lightning_gradexplode.diagnose.curves import curve, loss_curve
from lightning_gradexplode.diagnose.learning import LEARNED_LITTLE, UNLEARNED, learned
from lightning_gradexplode.diagnose.loop_code import code_of
from lightning_gradexplode.diagnose.optimizers import keeps_state
from lightning_gradexplode.diagnose.rate_remedies import first_update_ratio, rate_remedies
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence

DISTURBED = 8.0
"""Growth of the loss over the first steps from which these have undone what trained weights had learned."""

ZERO = 1e-7
"""Share of the targets' variance below which an error is none that weights were trained to."""

FAR_ABOVE = 5.0
"""So many times the rate that is seldom exceeded, a rate is far above it."""

RUINED = 20.0
"""Growth of the loss by the first update from which that has ruined the weights."""


def epsilon_too_large(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if an optimizer divides by an epsilon that is far larger than any gradient."""
    ratio = curve(evidence, "update_ratio").median
    if ratio is None or ratio > 1e-5 or not learned(evidence) > UNLEARNED:
        return
    for one in evidence.run.optimizers:
        eps = max((float(group["eps"]) for group in one.groups if isinstance(group.get("eps"), float)), default=0.0)
        if eps >= 1e-3:
            yield Cause(
                "optimizer-state",
                f"optimizer {one.kind}",
                (
                    f"`eps={eps:g}` of {one.kind} is added to the size of the gradients: an update is {ratio:.2g} of "
                    f"the weights, and the loss is {learned(evidence):.0%} of what it was.",
                ),
                0.75,
                ("set the usual epsilon: `eps=1e-8`",),
            )


def weights_decay(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a weight decay reduces the weights to nothing, and nothing is learned."""
    weights, rate = curve(evidence, "weight_norm").finite, curve(evidence, "learning_rate").median or 0.0
    if not weights.first or (weights.last or 0.0) > 0.3 * weights.first or not learned(evidence) > UNLEARNED:
        return
    for one in evidence.run.optimizers:
        decay = max((float(group.get("weight_decay") or 0.0) for group in one.groups), default=0.0)
        if decay >= 0.1 and decay * max(rate, 1e-3) * len(weights) > 1:
            yield Cause(
                "optimizer-state",
                f"optimizer {one.kind}",
                (
                    f"`weight_decay={decay:g}` has brought the weights from a norm of {weights.first:.3g} to "
                    f"{weights.last or 0:.3g}, and the loss is {learned(evidence):.0%} of what it was.",
                ),
                0.75,
                ("set a usual weight decay: `weight_decay=0.01`",),
            )


def new_state_disturbs(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first steps of an optimizer without state undo what trained weights had learned."""
    loss, ratio = loss_curve(evidence).finite.value, first_update_ratio(evidence)
    fresh = [one for one in evidence.run.optimizers if keeps_state(one) and not one.has_state]
    spreads = [one.usual_std or one.std for one in targets(evidence)]
    if not fresh or len(loss) < 8 or ratio is None or len(spreads) != 1 or not spreads[0]:
        return
    if not ZERO * spreads[0] ** 2 < loss[0] < 0.1 * spreads[0] ** 2 or loss[:9].min() < 0:
        return  # not trained before, or a loss that starts at zero and is no error
    if not float(np.median(loss[1:9])) > DISTURBED * loss[0]:
        return
    sentence = (
        f"The first update changed the weights by {ratio:.3g} of their norm; the loss was {loss[0]:.4g} before, "
        f"and its median over the next 8 steps is {float(np.median(loss[1:9])):.4g}."
    )
    yield fresh_state(evidence, fresh[0], [sentence], 0.75)


def updates_are_rounded_away(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if updates are below the last digit of weights in half precision."""
    weights, ratio = weights_type(evidence.run), curve(evidence, "update_ratio").median
    if weights is None or ratio is None or ratio >= 0.25 * SMALLEST_CHANGE[weights] or learned(evidence) < 0.7:
        return
    yield Cause(
        "half-precision",
        None,
        (
            f"Updates are {ratio:.2g} of the weights; changes below {SMALLEST_CHANGE[weights]:.2g} are lost in "
            f"{weights}.",
            f"After {len(loss_curve(evidence).finite)} steps the loss is {learned(evidence):.0%} of what it was.",
        ),
        0.75,
        (f"keep float32 weights: {code_of(evidence.run).bfloat16}",),
    )


def rate_too_high_to_learn(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a rate far above the usual moves the weights far, and the loss has come down by little."""
    rate, usual = curve(evidence, "learning_rate").median, usual_rate(evidence.run)
    first, course = first_update_ratio(evidence), trend(evidence)
    if rate is None or usual is None or first is None or not rate > FAR_ABOVE * usual[1]:
        return
    if first < LARGE_UPDATE or course.weight_growth < 1.5 or not learned(evidence) > LEARNED_LITTLE:
        return
    yield Cause(
        "learning-rate",
        None,
        (
            f"A learning rate of {rate:g} is high for {usual[0]}; it is seldom above {usual[1]:g}.",
            f"The first update changed the weights by {first:.3g} of their norm, and they have grown to "
            f"{course.weight_growth:.3g} times that; the loss is {learned(evidence):.0%} of what it was.",
        ),
        0.7,
        rate_remedies(evidence, course),
    )


def first_update_ruins(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update multiplies the loss, which does not come back."""
    loss = loss_curve(evidence).finite.value
    ratio = first_update_ratio(evidence)
    if len(loss) < 5 or not loss[0] > 0 or ratio is None or ratio < 0.05:
        return
    if loss[1:6].max() < RUINED * loss[0] or loss[1:].min() < 2 * loss[0]:
        return
    sentence = (
        f"The first update changed the weights by {ratio:.3g} of their norm, and the loss went from {loss[0]:.4g} to "
        f"{loss[1:6].max():.4g}; it has not come back."
    )
    spreads = [one.usual_std or one.std for one in targets(evidence)]
    is_trained = len(spreads) == 1 and spreads[0] is not None and loss[0] < 0.25 * spreads[0] ** 2
    fresh = [one for one in evidence.run.optimizers if keeps_state(one) and not one.has_state]
    if is_trained and fresh:
        yield fresh_state(evidence, fresh[0], [sentence], 0.75)
    else:
        yield Cause("learning-rate", None, (sentence,), 0.75, rate_remedies(evidence, trend(evidence)))
