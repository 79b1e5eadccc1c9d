"""Causes in a run without an incident: what is plainly wrong although nothing has exploded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from lightning_gradexplode.diagnose.batch import targets
from lightning_gradexplode.diagnose.causes.accumulation import accumulated_gradients
from lightning_gradexplode.diagnose.causes.data import unscaled_data
from lightning_gradexplode.diagnose.causes.initialization import large_weights
from lightning_gradexplode.diagnose.causes.objective import critic_of, critic_remedies
from lightning_gradexplode.diagnose.causes.optimization import rate_remedies
from lightning_gradexplode.diagnose.causes.optimizer import fresh_state, keeps_state
from lightning_gradexplode.diagnose.causes.precision import SMALLEST_CHANGE, weights_type
from lightning_gradexplode.diagnose.curves import curve, logged_curves, loss_curve
from lightning_gradexplode.diagnose.layers import layers
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.diagnose.wording import in_code_of
from lightning_gradexplode.records import CAUSE_KINDS, Cause, Diagnosis, Evidence, History

CERTAIN = 0.7
"""Least confidence of a cause that is named although nothing was found."""

LEARNED = 0.25
"""Share of its first values to which the loss of a run that learns comes down."""

ENOUGH = 50
"""Number of steps after which a run that learns has begun to."""

RUINED = 20.0
"""Growth of the loss by the first update from which that has ruined the weights."""


def diagnose_calm(evidence: Evidence) -> Diagnosis | None:
    """Return what is plainly wrong in a run in which nothing was found, None if nothing is.

    Only causes with evidence of their own count, from a confidence of 0.7 on: gradients that are never cleared,
    weights, data or a number format with which nothing is learned, a critic without a bound, a first update that
    ruins the weights.

    Args:
        evidence: The run's facts and histories, and the usual ranges of its batches.
    """
    found = [cause for rule in _RULES for cause in _attempt(rule, evidence) if cause.confidence >= CERTAIN]
    if not found:
        return None
    causes = sorted(found, key=lambda one: (-one.confidence, CAUSE_KINDS.index(one.kind)))[:3]
    loss, start = loss_curve(evidence).finite, evidence.run.first_step
    course = f"; the loss went from {loss.first:.4g} to {loss.last:.4g}" if len(loss) else ""
    diagnosis = Diagnosis(
        step=start,
        what=f"Nothing has exploded, and yet something is wrong from step {start} on{course}.",
        where=causes[0].where,
        since=None,
        causes=tuple(causes),
        remedies=causes[0].remedies[:5],
    )
    return in_code_of(evidence.run, diagnosis)


def _attempt(rule: Callable[[Evidence], Iterator[Cause]], evidence: Evidence) -> list[Cause]:
    try:
        return list(rule(evidence))
    except Exception:
        return []


def learned(evidence: Evidence) -> float:
    """Return the median of the last fifth of the losses over that of the first five; 0 where that is not known."""
    values = loss_curve(evidence).finite.value
    if len(values) < ENOUGH or not float(np.median(values[:5])) > 0:
        return 0.0
    return float(np.median(values[-len(values) // 5 :]) / np.median(values[:5]))


def _gradients_stay(evidence: Evidence) -> Iterator[Cause]:
    cause = accumulated_gradients(evidence)
    if cause is not None:
        yield cause


def _weights_too_large(evidence: Evidence) -> Iterator[Cause]:
    cause = large_weights(evidence) if learned(evidence) > LEARNED else None
    if cause is not None:
        yield cause


def _weights_without_gradient(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if most gradients have always been zero, and weights or biases explain it."""
    still = {name for history in evidence.history for name in _never_moved(history)}
    count = sum(len(history.parameters) for history in evidence.history)
    if learned(evidence) <= LEARNED or not 2 * len(still) >= count > len(still):
        return
    said = f"The gradients of {len(still)} of {count} parameters have been exactly zero at every step."
    zero = [one for one in layers(evidence.run) if one.std == 0 and one.name in still]
    if len(zero) > 1:
        yield Cause(
            "initialization",
            zero[0].name,
            (f"`{zero[0].name}` and {len(zero) - 1} more weights start at exactly zero.", said),
            0.9,
            ("start them at random instead of zero: `nn.init.kaiming_normal_(layer.weight)`",),
        )
    biases = [one for one in evidence.run.parameters if one.name.endswith("bias") and one.name in still]
    worst = max(biases, key=lambda one: one.std if math.isfinite(one.std) else 0.0, default=None)
    if worst is not None and worst.std >= 10:
        yield Cause(
            "initialization",
            worst.name,
            (f"`{worst.name}` starts with a root mean square of {worst.std:.3g}: its units are never active.", said),
            0.85,
            ("start its biases at zero: `nn.init.zeros_(layer.bias)`",),
        )


def _never_moved(history: History) -> list[str]:
    """Return the parameters whose gradient was zero at each of at least `ENOUGH` steps."""
    norms = history.parameter_grad_norm
    if norms.ndim != 2 or len(norms) < ENOUGH:
        return []
    return [name for name, column in zip(history.parameters, norms.T, strict=True) if not np.any(column)]


def _data_too_large(evidence: Evidence) -> Iterator[Cause]:
    norm = curve(evidence, "grad_norm").first
    if norm is not None and norm >= 1e3 and learned(evidence) > LEARNED:
        cause = unscaled_data(replace(evidence, step=evidence.run.first_step))
        if cause is not None and cause.confidence >= 0.9:  # of a scale of a thousand; many runs learn with less
            yield cause


def _updates_are_rounded_away(evidence: Evidence) -> Iterator[Cause]:
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
        ('keep float32 weights: `Trainer(precision="bf16-mixed")`',),
    )


def _critic_grows(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the logged loss of a critic has fallen far below zero while its weights have grown."""
    critic = critic_of(evidence.run)
    if critic is None:
        return
    weights = [
        curve(evidence, "weight_norm", optimizer=place)
        for place, history in enumerate(evidence.history)
        if all(one.startswith(f"{critic}.") for one in history.parameters)
    ]
    growth = max(((one.last or 0.0) / one.first for one in weights if one.first), default=1.0)
    for name, loss in logged_curves(evidence).items():
        first, least = loss.first, loss.least
        if critic in name and growth >= 3 and first is not None and (least or 0.0) < -10 * max(abs(first), 0.1):
            sentence = (
                f"`{name}` fell from {first:.4g} to {least or 0:.4g}, and the weights of `{critic}` have grown to "
                f"{growth:.3g} times their norm at the start."
            )
            yield Cause("loss-without-floor", critic, (sentence,), 0.75, critic_remedies(critic))


def _first_update_ruins(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update multiplies the loss, which does not come back."""
    loss = loss_curve(evidence).finite.value
    ratio = curve(evidence, "update_ratio").first
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


_RULES = (
    _gradients_stay,
    _weights_too_large,
    _weights_without_gradient,
    _data_too_large,
    _updates_are_rounded_away,
    _critic_grows,
    _first_update_ruins,
)
