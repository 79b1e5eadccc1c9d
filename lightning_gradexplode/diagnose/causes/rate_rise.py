"""A learning rate that was raised too far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.optimization import rate_is_disproved, rate_too_high
from lightning_gradexplode.diagnose.curves import (
    Curve,
    critical_step,
    curve,
    failing_step,
    first_nonfinite,
    history_at_fault,
    is_critical,
    loss_curve,
)
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import highest_normalized_rate, numbers_of, usual_rate
from lightning_gradexplode.diagnose.trends import MANY_STEPS, abrupt_step, begins_abruptly, loss_rise, trend
from lightning_gradexplode.records import Cause, Evidence, FloatArray

SUDDEN, GRADUAL = 1.9, 1.25
"""Rises of the rate that count: factor from one step to the next, and factor since the loss was lowest."""

MANY_FOLD = 5.0
"""Multiple of the first rate from which a rate that never fell is far above the start."""

PEAK = 0.9
"""Share of the highest rate from which a rate is still at its peak."""

LOWER = 0.8
"""Share of the first loss up to which the loss of a healthy run has decreased."""

AT_ONCE = 2
"""Number of steps after a rise of the rate within which it is the reason of a failure."""

LONG = 10
"""Number of steps without a critical finding after which the first rate is known to be harmless."""

EDGE = 0.3
"""Share of the rate at the lowest loss that is surely stable, if the rate was rising until then."""

SMALL = 0.01
"""Share of the highest earlier rate below which a rate does no harm, however fast it rose."""


@dataclass(frozen=True, slots=True)
class RateRise:
    """A rise of the learning rate.

    Args:
        step: The step at which the rate was raised, of a gradual rise the one at which it was highest.
        before: The rate before.
        after: The rate after.
        kept: A rate that is stable, or likely to be.
        sudden: Whether the rate rose from one step to the next.
    """

    step: int
    before: float
    after: float
    kept: float
    sudden: bool


def learning_rate_jump(evidence: Evidence) -> Cause | None:
    """Return the cause if the run was healthy until the learning rate rose."""
    rise = rate_rise(evidence)
    course = trend(evidence)
    if rise is None or rate_is_disproved(evidence) or _is_of_batch(evidence):
        return None
    if not (course.has_diverged or abrupt_rise(evidence) is not None):
        return None
    delay = critical_step(evidence) - rise.step
    confidence = (0.92 if delay <= 30 else 0.75) if rise.sudden else 0.7
    sentences = [f"The learning rate rose from {rise.before:.3g} to {rise.after:.3g} at step {rise.step}."]
    loss = loss_curve(evidence)
    level = loss.before(rise.step).median
    if not rise.sudden:
        first = curve(evidence, "learning_rate").first
        sentences = [f"The learning rate rose from {first:.3g} to {rise.after:.3g}, gradually up to step {rise.step}."]
        lowest = loss.before(critical_step(evidence)).least
        sentences.append(
            f"The loss was lowest, {lowest:.4g}, at a rate of {rise.before:.3g}; {_after(evidence, delay)}"
        )
    elif level is not None:
        sentences.append(f"Up to then the loss was steady, with a median of {level:.4g}; {_after(evidence, delay)}")
    schedulers = " and ".join(evidence.run.schedulers)
    schedule = f", also at the highest point of {schedulers}" if schedulers else ""
    return Cause(
        "learning-rate-jump",
        f"the learning rate at step {rise.step}",
        tuple(sentences),
        confidence,
        (
            f"keep the learning rate near {rise.kept:.3g}{schedule}",
            *remedies.clip(evidence),
            *remedies.rollback(evidence),
        ),
    )


def abrupt_rise(evidence: Evidence) -> RateRise | None:
    """Return the rise of the learning rate if it is many-fold, and the next losses are not finite; else None."""
    rise, failed = rate_rise(evidence), first_nonfinite(evidence)
    if rise is None or failed is None or not rise.sudden or rise.after < MANY_FOLD * rise.before:
        return None
    return rise if 0 < failed.step - rise.step <= AT_ONCE else None


def _is_of_batch(evidence: Evidence) -> bool:
    """Return whether the batch made the loss jump: no update was large, and the last one does not overshoot."""
    search = line_search(evidence)
    return search is not None and not search.overshoots and abrupt_step(evidence, "loss") is not None


def _after(evidence: Evidence, delay: int) -> str:
    which = "the first critical finding" if is_critical(evidence) else "the finding"
    if delay == 0:
        return f"{which} came at the step of the rise."
    return f"{which} came {delay} step{'s' if delay != 1 else ''} after the rise."


def rate_rise(evidence: Evidence) -> RateRise | None:
    """Return the rise of the learning rate before the incident, None without one or if the run was not healthy before.

    Of several sudden rises, the largest of those after which the loss has not been as low again is returned.
    """
    end = min(critical_step(evidence), failing_step(evidence))
    rates = curve(evidence, "learning_rate").before(end + 1).finite
    steps, values = rates.step, rates.value
    rises = [
        _sudden_rise(rates, place)
        for place in range(1, len(values))
        if values[place] >= SUDDEN * values[place - 1] > 0
        and end - steps[place] <= 100
        and values[place] >= SMALL * values[:place].max()
    ]
    sudden = [one for one in rises if _went_well_before(evidence, one.step)]
    loss = loss_curve(evidence).before(critical_step(evidence)).finite
    lowest = int(loss.step[loss.value.argmin()]) if len(loss) else 0
    harmful = [one for one in sudden if one.step > lowest] or sudden
    if harmful:
        return max(harmful, key=lambda one: one.after / one.before)
    return _rise_of_added_group(evidence, rates) or _gradual_rise(evidence, rates)


def _rise_of_added_group(evidence: Evidence, rates: Curve) -> RateRise | None:
    """Return the rise to the rate of a parameter group that was added during the run, which starts a new history."""
    place, run = history_at_fault(evidence), evidence.run
    if place is None or place >= len(run.optimizers) or run.schedulers or not len(rates):
        return None
    before = max((numbers_of(group).get("lr", 0.0) for group in run.optimizers[place].groups), default=0.0)
    step, after = int(rates.step[0]), float(rates.value[0])
    is_added = step - run.first_step >= MANY_STEPS and critical_step(evidence) - step <= MANY_STEPS
    return RateRise(step, before, after, before, True) if is_added and after >= SUDDEN * before > 0 else None


def _sudden_rise(rates: Curve, place: int) -> RateRise:
    before, after = _rate_before(rates.value[:place], float(rates.value[place])), float(rates.value[place])
    # A rate that had been raised before may be near the limit of stability.
    had_risen = before >= SUDDEN * rates.value[0]
    return RateRise(int(rates.step[place]), before, after, EDGE * before if had_risen else before, True)


def _rate_before(before: FloatArray, after: float) -> float:
    """Return the highest rate before a rise; the last one if an earlier rate was as high as that after the rise."""
    highest = float(before.max())
    return highest if highest < 0.9 * after else float(before[-1])


def _gradual_rise(evidence: Evidence, rates: Curve) -> RateRise | None:
    """Return a rise over several steps, None if the rate did not rise since the loss was lowest.

    A small rise since then is sufficient if the rate had risen many-fold before and updates overshoot, unless a single
    batch has made the loss jump.
    """
    loss = loss_curve(evidence).before(critical_step(evidence)).finite
    if len(rates) < 5 or len(loss) < 5:
        return None
    lowest = int(loss.step[loss.value.argmin()])
    before, after = rates.at(lowest), rates.last
    if before is None or after is None or before <= 0:
        return None
    if after < GRADUAL * before and (
        begins_abruptly(evidence) or not _has_risen_many_fold(rates, loss) or rate_too_high(evidence) is None
    ):
        return None
    is_first = lowest < loss.step[2]
    if loss_rise(loss.before(lowest + 1)) > 1.0 or (is_first and not _rises_from_the_start(evidence, rates)):
        return None
    peak = int(rates.step[rates.value >= after][0])
    usual, first = highest_normalized_rate(evidence.run), float(rates.value[0])
    return RateRise(peak, before, after, first if is_first else min(EDGE * before, max(usual, first)), False)


def _rises_from_the_start(evidence: Evidence, rates: Curve) -> bool:
    """Return whether the rate has only risen, to a multiple of a usual first one, while the loss has not exploded."""
    values, usual = rates.value, usual_rate(evidence.run)
    has_risen = values[-1] >= MANY_FOLD * values[0] and bool((np.diff(values) >= 0).all())
    is_usual = usual is not None and values[0] <= usual[1]
    return has_risen and is_usual and len(values) > LONG and rate_too_high(evidence) is not None


def _has_risen_many_fold(rates: Curve, loss: Curve) -> bool:
    """Return whether the rate has risen monotonically to a multiple of the first one while the loss decreased.

    The rate must still be at its peak, for at most as many steps as it had been rising.
    """
    values, peak = rates.value, int(rates.value.argmax())
    has_risen = values[peak] >= MANY_FOLD * values[0] > 0 and bool((np.diff(values[: peak + 1]) >= 0).all())
    is_at_peak = values[-1] >= PEAK * values[peak] and len(values) <= 2 * (peak + 1)
    return has_risen and is_at_peak and 0 < loss.value.min() <= LOWER * loss.value[0]


def _went_well_before(evidence: Evidence, step: int) -> bool:
    """Return whether there were at least three steps before, with a loss that stayed near its start."""
    before = loss_curve(evidence).before(step).finite
    return len(before) >= 3 and loss_rise(before) < 3.0
