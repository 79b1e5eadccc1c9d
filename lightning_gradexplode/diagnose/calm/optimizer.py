"""Optimizer settings and states with which a run without an incident does not learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lightning_gradexplode.diagnose.batch import is_float, targets
from lightning_gradexplode.diagnose.causes.optimizer import fresh_state
from lightning_gradexplode.diagnose.causes.precision import SMALLEST_CHANGE, weights_type
from lightning_gradexplode.diagnose.curves import curve, last_level, loss_curve
from lightning_gradexplode.diagnose.first_update import first_update_ratio
from lightning_gradexplode.diagnose.learning import ENOUGH, learned
from lightning_gradexplode.diagnose.optimizers import keeps_state, usual_rate
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.diagnose.remedies.rate import rate_remedies
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, History, RunFacts

FAR_ABOVE, TURNED = 10.0, 100.0
"""Multiple of the highest usual rate, and growth of the gradient by the first update, from which the rate alone has
ruined the weights, whatever the loss is."""

GROWN = 3.0
"""Growth of the weights' norm after the first update, from which the updates after it are as large."""

RUINED = 20.0
"""Factor by which the loss has grown after the first update, from which the update has ruined the weights."""


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


def weights_stand_still(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if weights in half precision with gradients are exactly what they were at the start."""
    moved = {name for history in evidence.history for name in _with_gradient(history)}
    still = [one for one in evidence.run.parameters if one.name in moved and one.name in evidence.unchanged]
    steps, rate = len(loss_curve(evidence).finite), curve(evidence, "learning_rate").greatest
    if not still or steps < ENOUGH or not rate:
        return
    worst = max(still, key=lambda one: one.largest)
    more = f" and {len(still) - 1} more weights are" if len(still) > 1 else " is"
    least = worst.largest * SMALLEST_CHANGE[worst.dtype]
    yield Cause(
        "half-precision",
        worst.name,
        (
            f"`{worst.name}`{more} exactly the same after {steps} steps with gradients: of values up to "
            f"{worst.largest:.3g} in {worst.dtype}, changes below {least:.2g} are lost, and the learning rate is at "
            f"most {rate:.2g}.",
        ),
        0.75,
        (f"keep float32 weights: {code_of(evidence.run).bfloat16}",),
    )


def _with_gradient(history: History) -> list[str]:
    """Return the parameters that have had a gradient."""
    norms = history.parameter_grad_norm
    if norms.ndim != 2:
        return []
    return [name for name, column in zip(history.parameters, norms.T, strict=True) if np.any(column > 0)]


def first_update_replaces(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update of an optimizer without a known loss replaces its weights, at a huge rate."""
    start = evidence.run.first_step
    for place, one in enumerate(evidence.run.optimizers[: len(evidence.history)]):
        loss, ratio, rate, norm, weights = (
            curve(evidence, name, optimizer=place)
            for name in ("loss", "update_ratio", "learning_rate", "grad_norm", "weight_norm")
        )
        first = ratio.at(start) if len(evidence.run.optimizers) > 1 else first_update_ratio(evidence)
        before, after = norm.at(start), norm.at(start + 1)
        has_turned = before is not None and after is not None and after >= TURNED * before > 0
        growth = (weights.greatest or 0.0) / (weights.first or math.inf)
        usual = usual_rate(RunFacts(optimizers=(one,)))
        is_far = usual is not None and (rate.at(start) or 0.0) >= FAR_ABOVE * usual[1]
        if len(loss.finite) or not is_far or (first or 0.0) < 1 or not (has_turned or growth >= GROWN):
            continue
        result = (
            f"the gradient norm went from {before:.3g} to {after:.3g}"
            if has_turned
            else f"the norm of the weights has grown {growth:.3g} times since"
        )
        sentence = (
            f"The first update of {one.kind} changed the weights by {first:.3g} times their norm, at a learning rate "
            f"of {rate.at(start):g}, and {result}."
        )
        names = evidence.history[place].parameters
        advice = f"lower the learning rate of the optimizer of `{names[0]}` to `lr={0.1 * usual[1]:g}`" if usual else ""
        yield Cause("learning-rate", _common(names), (sentence,), 0.75, (advice,))


def _common(names: Sequence[str]) -> str | None:
    """Return the module that all parameters belong to, None if there is none but the whole network."""
    parts = [one.split(".")[:-1] for one in names]
    shared = [pair[0] for pair in zip(*parts, strict=False) if len(set(pair)) == 1]
    return ".".join(shared) or None


def first_update_ruins(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update multiplies the loss, or replaces the weights, and the loss stays high."""
    loss = loss_curve(evidence).finite.value
    ratio = first_update_ratio(evidence)
    if len(loss) < 5 or not loss[0] > 0 or ratio is None or ratio < 0.05:
        return
    ruins = loss[1:6].max() >= RUINED * loss[0] and loss[1:].min() >= 2 * loss[0]
    # A classification loss is bounded by the outputs, so that it grows less after an update that replaces the weights.
    left = last_level(loss) / float(loss[0])
    rate, usual = curve(evidence, "learning_rate").first, usual_rate(evidence.run)
    is_far = rate is not None and usual is not None and rate >= FAR_ABOVE * usual[1]
    has_risen = loss[1:6].max() >= (1.0 if is_far else 2.0) * loss[0]
    replaces = ratio >= 1 and len(loss) >= ENOUGH and has_risen and left >= 0.75
    if not (ruins or replaces):
        return
    after = "it has not come back" if ruins else f"after {len(loss)} steps it is {left:.0%} of the first"
    sentence = (
        f"The first update changed the weights by {ratio:.3g} times their norm, and the loss went from "
        f"{loss[0]:.4g} to {loss[1:6].max():.4g}; {after}."
    )
    spreads = [one.usual_std or one.std for one in targets(evidence) if is_float(one)]
    is_trained = len(spreads) == 1 and spreads[0] is not None and loss[0] < 0.25 * spreads[0] ** 2
    fresh = [one for one in evidence.run.optimizers if keeps_state(one) and not one.has_state]
    if is_trained and fresh:
        yield fresh_state(evidence, fresh[0], [sentence], 0.75)
    else:
        yield Cause("learning-rate", None, (sentence,), 0.75, rate_remedies(evidence, trend(evidence)))
