"""A learning rate that is too high, or rises too far, in a run without an incident."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lightning_gradexplode.diagnose.causes.rate_rise import MANY_FOLD
from lightning_gradexplode.diagnose.curves import curve, last_level, loss_curve
from lightning_gradexplode.diagnose.layers import layers, untrained_loss
from lightning_gradexplode.diagnose.learning import ENOUGH, LEARNED, UNLEARNED, learned
from lightning_gradexplode.diagnose.optimizers import UNIT_STEPS, usual_rate
from lightning_gradexplode.diagnose.remedies.rate import rate_remedies
from lightning_gradexplode.diagnose.trends import initial_weight_norm, trend
from lightning_gradexplode.records import Cause, Evidence

FAR_ABOVE, ABOVE = 10.0, 2.0
"""Multiples of the highest usual rate from which a rate is far above it, and clearly above it."""

GROWN, CHANGED = 3.0, 1.5
"""Growth of the weights' norm with which updates were as large as the weights, and with which they were large."""

MOVED = 0.2
"""Share of the weights' root mean square that one update moves them by, from which it is large."""

RISEN = 1.5
"""Multiple of the first loss that the loss has at first where updates overshoot, and of losses before a rise."""

LATELY = 20
"""Least number of losses before and after a rise of the rate, and number of those at the end of the run."""

LOW, LOST = 0.5, 0.5
"""Share of the first loss to which a run that has learned comes down, and share of the decrease that it then loses."""


def rate_far_too_high(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the loss rose at a rate far above the usual ones, the weights grew, and little is learned."""
    loss, weights = loss_curve(evidence).finite.value, curve(evidence, "weight_norm").finite
    rate, usual, start = curve(evidence, "learning_rate").first, usual_rate(evidence.run), initial_weight_norm(evidence)
    if len(loss) < ENOUGH or usual is None or rate is None or not start or len(evidence.run.optimizers) > 1:
        return
    growth, highest = (weights.greatest or 0.0) / start, float(loss[:ENOUGH].max())
    has_risen = loss[0] > 0 and highest >= RISEN * loss[0] and int(loss[:ENOUGH].argmax()) > 0
    if rate < FAR_ABOVE * usual[1] or growth < GROWN or not has_risen or learned(evidence) <= LEARNED:
        return
    yield Cause(
        "learning-rate",
        None,
        (
            f"The learning rate of {rate:g} is at least {FAR_ABOVE:g} times the highest usual one. The loss rose from "
            f"{loss[0]:.4g} to {highest:.4g} at first, and the weights have grown {growth:.3g} times.",
            f"After {len(loss)} steps the loss is {learned(evidence):.0%} of what it was.",
        ),
        0.7,
        _remedies(evidence),
    )


def rate_above_usual(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the rate is above the usual ones, and the loss has never come down, or has come up again."""
    loss, weights = loss_curve(evidence).finite.value, curve(evidence, "weight_norm").finite
    rate, usual, start = _rate_above(evidence, ABOVE), usual_rate(evidence.run), initial_weight_norm(evidence)
    if len(loss) < 2 * ENOUGH or usual is None or rate is None or not start:
        return
    growth, first = (weights.greatest or 0.0) / start, float(loss[0])
    if growth < CHANGED or not first > 0:
        return
    lowest, late = _lowest(loss), last_level(loss)
    if lowest >= UNLEARNED * first:
        course = f"The loss has never come down: it was {first:.4g}, and is {late:.4g} after {len(loss)} steps."
    elif lowest <= LOW * first and late - lowest >= LOST * (first - lowest):
        course = f"The loss had come down from {first:.4g} to {lowest:.4g}, and is at {late:.4g} again."
    else:
        return
    sentence = (
        f"The learning rate of {rate:g} is at least {ABOVE:g} times the highest usual one of {usual[0]}, and the "
        f"weights have grown {growth:.3g} times."
    )
    yield Cause("learning-rate", None, (sentence, course), 0.7, _remedies(evidence))


def rate_as_large_as_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if each update may move weights by much, and the loss stays at that of an untrained network.

    The first loss may be far above that level, so that the loss has come down, and yet nothing is learned.
    """
    loss, guess = loss_curve(evidence).finite.value, untrained_loss(evidence)
    rate, sizes = _rate_above(evidence, ABOVE), [one.std for one in layers(evidence.run) if one.std > 0]
    if len(loss) < 2 * ENOUGH or guess is None or rate is None or not sizes:
        return
    size = float(np.median(sizes))
    if evidence.run.optimizers[0].kind not in UNIT_STEPS or rate < MOVED * size or _lowest(loss) < UNLEARNED * guess:
        return
    yield Cause(
        "learning-rate",
        None,
        (
            f"An update of {evidence.run.optimizers[0].kind} moves weights by up to about its learning rate of "
            f"{rate:g}; those of the layers have a root mean square of {size:.3g} (median).",
            f"The loss is {last_level(loss):.4g} after {len(loss)} steps, and was never clearly below {guess:.4g}, "
            "that of a network that has learned nothing.",
        ),
        0.7,
        _remedies(evidence),
    )


def rate_replaces_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if each update may replace the weights, at a rate far above the usual ones, and the loss stays.

    That is, it has come down by less than half, and no further over the second half of the run.
    """
    loss, first = loss_curve(evidence).finite.value, loss_curve(evidence).first
    rate, sizes = _rate_above(evidence, FAR_ABOVE), [one.std for one in layers(evidence.run) if one.std > 0]
    if len(loss) < 2 * ENOUGH or first is None or not first > 0 or rate is None or len(sizes) < 2:
        return
    size, late, half = float(np.median(sizes)), last_level(loss), len(loss) // 2
    if evidence.run.optimizers[0].kind not in UNIT_STEPS or rate < size or late < LOW * first:
        return
    if late < UNLEARNED * float(np.median(loss[half - LATELY // 2 : half + LATELY // 2])):
        return
    yield Cause(
        "learning-rate",
        None,
        (
            f"The learning rate of {rate:g} is at least {FAR_ABOVE:g} times the highest usual one of "
            f"{evidence.run.optimizers[0].kind}, each of whose updates moves weights by up to about that; those of the "
            f"layers start with a root mean square of {size:.3g} (median).",
            f"The loss was {first:.4g} at first, and has stayed near {late:.4g} over the second half of {len(loss)} "
            "steps.",
        ),
        0.7,
        _remedies(evidence),
    )


def _remedies(evidence: Evidence) -> tuple[str, ...]:
    """Return the remedies at the step with the highest rate, since that of a schedule may have decayed since."""
    rates = curve(evidence, "learning_rate").finite
    highest = int(rates.step[rates.value.argmax()]) if len(rates) else evidence.step
    return rate_remedies(replace(evidence, step=highest), trend(evidence))


def _rate_above(evidence: Evidence, factor: float) -> float | None:
    """Return the highest learning rate of the only optimizer, None if it is below a multiple of the usual ones."""
    rate, usual = curve(evidence, "learning_rate").greatest, usual_rate(evidence.run)
    if usual is None or rate is None or len(evidence.run.optimizers) > 1:
        return None
    return rate if rate >= factor * usual[1] else None


def _lowest(loss: NDArray[np.float64]) -> float:
    """Return the lowest median of ten losses in a row."""
    return float(np.median(loss[: len(loss) // 10 * 10].reshape(-1, 10), axis=1).min())


def rate_raised_at_once(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the rate rose many-fold from one step to the next, and the loss has been higher since.

    The loss of the step of the rise has to be usual: otherwise something else has changed there. After a planned rise,
    as of a warm restart, the loss comes down again.
    """
    rates, loss = curve(evidence, "learning_rate").finite, loss_curve(evidence).finite
    sudden = (np.diff(rates.step) == 1) & (rates.value[1:] >= MANY_FOLD * rates.value[:-1]) & (rates.value[:-1] > 0)
    if not sudden.any():
        return
    place = int(np.flatnonzero(sudden)[-1]) + 1
    step, before, after = int(rates.step[place]), float(rates.value[place - 1]), float(rates.value[place])
    earlier, since, at_once = loss.before(step).value[-ENOUGH:], loss.since(step + 1).value[-ENOUGH:], loss.at(step)
    count, other = len(earlier), len(since)
    if min(count, other) < LATELY or at_once is None or at_once > earlier.max():
        return
    low, high = float(np.median(earlier)), float(np.median(since[-LATELY:]))
    # Of samples that do not differ, the share of pairs has this standard deviation (Mann and Whitney, 1947).
    spread = math.sqrt((count + other + 1) / (12 * count * other))
    if not high >= RISEN * low > 0 or np.mean(since[:, None] > earlier) < 0.5 + 3 * spread:
        return
    restore = (
        "if the run was resumed there, restore the schedule after the optimizer, since the constructor of a schedule "
        'sets the initial rate: `scheduler.load_state_dict(checkpoint["scheduler"])`'
    )
    was_as_high = bool(rates.value[:place].max() >= after)
    yield Cause(
        "learning-rate-jump",
        f"the learning rate at step {step}",
        (
            f"The learning rate rose from {before:.3g} to {after:.3g} at step {step}.",
            f"The losses before it have a median of {low:.4g}, and the last ones of {high:.4g}.",
        ),
        0.75,
        (*([restore] if was_as_high else []), f"keep the learning rate near {before:.3g}"),
    )
