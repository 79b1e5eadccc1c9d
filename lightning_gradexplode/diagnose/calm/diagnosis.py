"""Causes in a run without an incident: what is plainly wrong although nothing has exploded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lightning_gradexplode.diagnose.batch import is_mask, place_of, size_of, targets
from lightning_gradexplode.diagnose.calm.early_gradients import early_gradient_remains
from lightning_gradexplode.diagnose.calm.high_rate import (
    rate_above_usual,
    rate_as_large_as_weights,
    rate_far_too_high,
    rate_raised_at_once,
    rate_replaces_weights,
)
from lightning_gradexplode.diagnose.calm.optimizer import (
    first_update_replaces,
    first_update_ruins,
    updates_are_rounded_away,
    weights_stand_still,
)
from lightning_gradexplode.diagnose.calm.weights import (
    operation_without_slope,
    scale_too_large,
    softmax_of_one_element,
    weights_too_large,
    weights_too_small,
    weights_without_gradient,
)
from lightning_gradexplode.diagnose.causes.accumulation import accumulated_gradients
from lightning_gradexplode.diagnose.causes.inactive_units import units_stay_inactive
from lightning_gradexplode.diagnose.causes.objective import keeps_falling, negative_term
from lightning_gradexplode.diagnose.causes.outliers import far_off_batch
from lightning_gradexplode.diagnose.causes.plain_outputs import plain_outputs
from lightning_gradexplode.diagnose.causes.targets import target_out_of_range
from lightning_gradexplode.diagnose.causes.unbounded_parts import critic_of, critic_remedies
from lightning_gradexplode.diagnose.causes.unscaled_data import unscaled_data
from lightning_gradexplode.diagnose.causes.update_sizes import forgotten_each_epoch
from lightning_gradexplode.diagnose.curves import curve, last_level, logged_curves, loss_curve
from lightning_gradexplode.diagnose.guarded_rules import causes_by
from lightning_gradexplode.diagnose.learning import ENOUGH, LEARNED, learned
from lightning_gradexplode.records import CAUSE_KINDS, Cause, Diagnosis, Evidence

CERTAIN = 0.7
"""Least confidence of a cause that is reported although no detector has found anything."""

PLAIN = 0.9
"""Least confidence with which gradients that add up are reported in a run that has learned nevertheless."""

FAR_ABOVE = 1e3
"""Loss per element, in squares of the largest target or in units, from which nothing is learned however it falls."""


def diagnose_calm(evidence: Evidence) -> Diagnosis | None:
    """Return what is plainly wrong in a run without findings, None if nothing is.

    Only causes with evidence of their own count, from a confidence of 0.7 on: gradients that are never cleared,
    weights, data, a number format or settings of the optimizer with which nothing is learned, a critic without a bound,
    targets with which a loss falls below zero, first updates that ruin trained weights, and
    an early gradient that keeps the steps short.

    Args:
        evidence: The run's facts and histories, and the usual ranges of its batches.
    """
    causes = calm_causes(evidence)
    if not causes:
        return None
    loss = loss_curve(evidence).finite
    course = f"; the loss went from {loss.first:.4g} to {loss.last:.4g}" if len(loss) else ""
    return Diagnosis(
        step=evidence.run.first_step,
        what=f"Nothing has exploded, and yet something is wrong{course}.",
        where=causes[0].where,
        since=None,
        causes=tuple(causes),
        remedies=causes[0].remedies[:5],
    )


def calm_causes(evidence: Evidence) -> list[Cause]:
    """Return what is plainly wrong in a run that has not exploded, likeliest first, at most three causes.

    A rule that raises is logged and left out.
    """
    causes = [cause for rule in _RULES for cause in causes_by(rule.__name__, rule, evidence)]
    found = [cause for cause in causes if cause.confidence >= CERTAIN]
    found.sort(key=lambda one: (-one.confidence, CAUSE_KINDS.index(one.kind)))
    return list({(one.kind, one.where): one for one in reversed(found)}.values())[::-1][:3]


def _gradients_stay(evidence: Evidence) -> Iterator[Cause]:
    cause = accumulated_gradients(evidence)
    if cause is not None and (cause.confidence >= PLAIN or learned(evidence) > LEARNED):
        yield cause


def _data_too_large(evidence: Evidence) -> Iterator[Cause]:
    norm = curve(evidence, "grad_norm").first
    if norm is not None and norm >= 1e3 and (learned(evidence) > LEARNED or _is_far_above_targets(evidence)):
        cause = unscaled_data(replace(evidence, step=evidence.run.first_step))
        if cause is not None and cause.confidence >= 0.9:  # a scale of at least a thousand; many runs learn with less
            yield cause


def _few_batches_ruin(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the losses of a few batches are enormous, and the others have not been learned meanwhile."""
    cause = far_off_batch(evidence) if learned(evidence) > LEARNED else None
    if cause is not None:
        yield cause


def _is_far_above_targets(evidence: Evidence) -> bool:
    """Return whether the loss is, at the end, far above that of any outputs as large as the targets."""
    loss, known = loss_curve(evidence).finite.value, targets(evidence)
    if len(loss) < ENOUGH or not known:
        return False
    largest = max(math.prod(one.shape) * max(1.0, size_of(one) or math.inf) ** 2 for one in known)
    return last_level(loss) > FAR_ABOVE * largest


def _critic_grows(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the weights of a critic have grown while its logged loss fell far below zero.

    If its loss is not known, a gradient that grows with the weights shows it: that of a classifier gets smaller.
    """
    critic = critic_of(evidence.run)
    if critic is None:
        return
    own = [
        place
        for place, history in enumerate(evidence.history)
        if all(one.startswith(f"{critic}.") for one in history.parameters)
    ]
    weights = [curve(evidence, "weight_norm", optimizer=place) for place in own]
    growth = max(((one.last or 0.0) / one.first for one in weights if one.first), default=1.0)
    slopes = [curve(evidence, "grad_norm", optimizer=place).finite.value for place in own]
    rise = max((float(np.median(one[-10:]) / one[0]) for one in slopes if len(one) >= ENOUGH and one[0] > 0), default=0)
    if growth >= 3 and rise >= 10 and not len(loss_curve(evidence).finite):
        sentence = (
            f"The weights of `{critic}` have grown to {growth:.3g} times their norm at the start, and its gradient to "
            f"{rise:.3g} times; no loss is known."
        )
        yield Cause("loss-without-floor", critic, (sentence,), CERTAIN, critic_remedies(critic))
    for name, loss in logged_curves(evidence).items():
        first, least = loss.first, loss.least
        if critic in name and growth >= 3 and first is not None and (least or 0.0) < -10 * max(abs(first), 0.1):
            sentence = (
                f"`{name}` fell from {first:.4g} to {least or 0:.4g}, and the weights of `{critic}` have grown to "
                f"{growth:.3g} times their norm at the start."
            )
            yield Cause("loss-without-floor", critic, (sentence,), 0.75, critic_remedies(critic))


def _targets_outside(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the loss has gone below zero with targets outside of its domain, or a mask above one."""
    loss = loss_curve(evidence).finite.value
    if len(loss) < ENOUGH or not loss[0] > 0 > last_level(loss):
        return
    cause = target_out_of_range(evidence)
    if cause is not None and cause.confidence >= 0.9:  # of a loss that is known by its name
        yield cause
        return
    masks = [one for one in targets(evidence) if is_mask(one) and (one.greatest or 0.0) > 1.0]
    if masks:
        place, greatest = place_of(masks[0]), masks[0].greatest or 0.0
        yield Cause(
            "target-out-of-range",
            place,
            (
                f"`{place}` holds values up to {greatest:g}; a mask of what is there and what is not holds 0 and 1.",
                f"The loss went from {loss[0]:.4g} to {loss[-1]:.4g}; with such a mask it is never negative.",
            ),
            0.75,
            (f"bring the mask into the range from 0 to 1: `{place} = ({place} > 0).float()`",),
        )


_RULES = (
    _gradients_stay,
    scale_too_large,
    weights_too_large,
    weights_too_small,
    weights_without_gradient,
    operation_without_slope,
    softmax_of_one_element,
    _data_too_large,
    _few_batches_ruin,
    updates_are_rounded_away,
    weights_stand_still,
    _critic_grows,
    plain_outputs,
    keeps_falling,
    negative_term,
    _targets_outside,
    first_update_ruins,
    first_update_replaces,
    rate_far_too_high,
    rate_raised_at_once,
    rate_above_usual,
    rate_as_large_as_weights,
    rate_replaces_weights,
    early_gradient_remains,
    units_stay_inactive,
    forgotten_each_epoch,
)
