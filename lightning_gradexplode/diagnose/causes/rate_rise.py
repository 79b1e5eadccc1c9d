"""A learning rate that was raised to where the weights no longer bear it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.optimization import MANY_STEPS, learning_rate, rate_is_disproved
from lightning_gradexplode.diagnose.curves import (
    Curve,
    FloatArray,
    critical_step,
    curve,
    failing_step,
    history_at_fault,
    loss_curve,
)
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import numbers_of
from lightning_gradexplode.diagnose.trends import abrupt_step, begins_abruptly, loss_rise, trend
from lightning_gradexplode.records import Cause, Evidence

SUDDEN, GRADUAL = 1.9, 1.25
"""So many times the rate before: from one step to the next, and since the loss was lowest."""

MANY_FOLD = 5.0
"""So many times the first rate, a rate that never fell has left that of the start."""

PEAK = 0.9
"""A rate of so large a part of the highest one is still at it."""

LOWER = 0.8
"""Share of the first loss to which the loss of a run that goes well has come down."""

EDGE = 0.3
"""Share of the rate at which the loss was lowest, where that is the last of ever higher ones, that is surely borne."""

SMALL = 0.01
"""A rate of so small a part of the highest one before it harms nothing, however fast it rose."""


@dataclass(frozen=True, slots=True)
class RateRise:
    """A rise of the learning rate.

    Args:
        step: The step at which the rate was raised, of a gradual rise the one at which it was highest.
        before: The rate before.
        after: The rate after.
        kept: A rate that is borne, or likely to be.
        sudden: Whether it rose from one step to the next.
    """

    step: int
    before: float
    after: float
    kept: float
    sudden: bool


def learning_rate_jump(evidence: Evidence) -> Cause | None:
    """Return the cause if all went well until the learning rate rose."""
    rise = rate_rise(evidence)
    course = trend(evidence)
    if rise is None or not course.has_diverged or rate_is_disproved(evidence) or _is_of_batch(evidence):
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
    schedule = (
        f", the highest that {' and '.join(evidence.run.schedulers)} may reach" if evidence.run.schedulers else ""
    )
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


def _is_of_batch(evidence: Evidence) -> bool:
    """Return whether the batch has made the loss jump: updates were ordinary, and the last one does not overshoot."""
    search = line_search(evidence)
    return search is not None and not search.overshoots and abrupt_step(evidence, "loss") is not None


def _after(evidence: Evidence, delay: int) -> str:
    if delay == 0:
        return "the first critical finding came at the step of the rise."
    return f"the first critical finding came {delay} step{'s' if delay != 1 else ''} after the rise."


def rate_rise(evidence: Evidence) -> RateRise | None:
    """Return the rise of the learning rate before the incident, None if there was none or it did not go well before.

    Of several sudden rises it is the largest of those after which the loss has not been as low again.
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
    """Return the rise to the rate of a parameter group that was added in mid-run, with which a history begins anew."""
    place, run = history_at_fault(evidence), evidence.run
    if place is None or place >= len(run.optimizers) or run.schedulers or not len(rates):
        return None
    before = max((numbers_of(group).get("lr", 0.0) for group in run.optimizers[place].groups), default=0.0)
    step, after = int(rates.step[0]), float(rates.value[0])
    is_added = step - run.first_step >= MANY_STEPS and critical_step(evidence) - step <= MANY_STEPS
    return RateRise(step, before, after, before, True) if is_added and after >= SUDDEN * before > 0 else None


def _sudden_rise(rates: Curve, place: int) -> RateRise:
    before, after = _borne(rates.value[:place], float(rates.value[place])), float(rates.value[place])
    # A rate that had been raised before may be at the edge of what is borne.
    had_risen = before >= SUDDEN * rates.value[0]
    return RateRise(int(rates.step[place]), before, after, EDGE * before if had_risen else before, True)


def _borne(before: FloatArray, after: float) -> float:
    """Return the highest rate before a rise; the last one where a rate as high was borne before."""
    highest = float(before.max())
    return highest if highest < 0.9 * after else float(before[-1])


def _gradual_rise(evidence: Evidence, rates: Curve) -> RateRise | None:
    """Return a rise over several steps, None if the rate did not rise since the loss was lowest.

    It may have risen by little since then if it had risen many-fold before, and updates overshoot; not where one batch
    has made the loss jump.
    """
    loss = loss_curve(evidence).before(critical_step(evidence)).finite
    if len(rates) < 5 or len(loss) < 5:
        return None
    lowest = int(loss.step[loss.value.argmin()])
    before, after = rates.at(lowest), rates.last
    if before is None or after is None or before <= 0:
        return None
    if after < GRADUAL * before and (
        begins_abruptly(evidence) or not _has_risen_many_fold(rates, loss) or learning_rate(evidence) is None
    ):
        return None
    if loss_rise(loss.before(lowest + 1)) > 1.0 or lowest < loss.step[2]:
        return None
    peak = int(rates.step[rates.value >= after][0])
    usual = remedies.highest_usual_rate(evidence.run)
    return RateRise(peak, before, after, min(EDGE * before, max(usual, float(rates.value[0]))), False)


def _has_risen_many_fold(rates: Curve, loss: Curve) -> bool:
    """Return whether the rate, without a fall, has become several times the first one while the loss came down.

    It is at its peak still, for no more steps than it had been rising.
    """
    values, peak = rates.value, int(rates.value.argmax())
    has_risen = values[peak] >= MANY_FOLD * values[0] > 0 and bool((np.diff(values[: peak + 1]) >= 0).all())
    is_at_peak = values[-1] >= PEAK * values[peak] and len(values) <= 2 * (peak + 1)
    return has_risen and is_at_peak and 0 < loss.value.min() <= LOWER * loss.value[0]


def _went_well_before(evidence: Evidence, step: int) -> bool:
    """Return whether there were three steps and more before, with a loss that did not rise and was not far off."""
    before = loss_curve(evidence).before(step).finite
    return len(before) >= 3 and loss_rise(before) < 3.0
