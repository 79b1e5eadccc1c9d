"""A learning rate that was raised to where the weights no longer bear it."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.optimization import rate_is_disproved
from lightning_gradexplode.diagnose.curves import Curve, FloatArray, critical_step, curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.trends import abrupt_step, loss_rise, trend
from lightning_gradexplode.records import Cause, Evidence

SUDDEN, GRADUAL = 1.9, 1.25
"""So many times the rate before: from one step to the next, and since the loss was lowest."""

SMALL = 0.01
"""A rate of so small a part of the highest one before it harms nothing, however fast it rose."""


@dataclass(frozen=True, slots=True)
class RateRise:
    """A rise of the learning rate.

    Args:
        step: The step at which the rate was raised, of a gradual rise the one at which it was highest.
        before: The rate before.
        after: The rate after.
        sudden: Whether it rose from one step to the next.
    """

    step: int
    before: float
    after: float
    sudden: bool


def learning_rate_jump(evidence: Evidence) -> Cause | None:
    """Return the cause if all went well until the learning rate rose."""
    rise = rate_rise(evidence)
    course = trend(evidence)
    if rise is None or not course.has_diverged or rate_is_disproved(evidence) or _is_of_batch(evidence):
        return None
    delay = critical_step(evidence) - rise.step
    confidence = (0.92 if delay <= 30 else 0.75) if rise.sudden else 0.7
    how = f"at step {rise.step}" if rise.sudden else f"gradually up to step {rise.step}"
    level = loss_curve(evidence).before(rise.step).median
    sentences = [f"The learning rate rose from {rise.before:.3g} to {rise.after:.3g} {how}."]
    if level is not None:
        sentences.append(f"Up to then the loss was steady, with a median of {level:.4g}; {_after(evidence, delay)}")
    schedule = (
        f", the highest that {' and '.join(evidence.run.schedulers)} may reach" if evidence.run.schedulers else ""
    )
    # The rate at which the loss was lowest is the last that was borne, at the edge of what is.
    kept = rise.before if rise.sudden else 0.3 * rise.before
    return Cause(
        "learning-rate-jump",
        f"the learning rate at step {rise.step}",
        tuple(sentences),
        confidence,
        (
            f"keep the learning rate near {kept:.3g}{schedule}",
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
    """Return the rise of the learning rate before the incident, None if there was none or it did not go well before."""
    end = min(critical_step(evidence), failing_step(evidence))
    rates = curve(evidence, "learning_rate").before(end + 1).finite
    steps, values = rates.step, rates.value
    rises = [
        RateRise(int(steps[place]), _borne(values[:place], float(values[place])), float(values[place]), True)
        for place in range(1, len(values))
        if values[place] >= SUDDEN * values[place - 1] > 0
        and end - steps[place] <= 100
        and values[place] >= SMALL * values[:place].max()
    ]
    sudden = [one for one in rises if _went_well_before(evidence, one.step)]
    if sudden:
        return max(sudden, key=lambda one: one.after / one.before)
    return _gradual_rise(evidence, rates)


def _borne(before: FloatArray, after: float) -> float:
    """Return the highest rate before a rise; the last one where a rate as high was borne before."""
    highest = float(before.max())
    return highest if highest < 0.9 * after else float(before[-1])


def _gradual_rise(evidence: Evidence, rates: Curve) -> RateRise | None:
    """Return a rise over several steps, from the rate at which the loss was lowest; None if the rate did not rise."""
    loss = loss_curve(evidence).before(critical_step(evidence)).finite
    if len(rates) < 5 or len(loss) < 5:
        return None
    lowest = int(loss.step[loss.value.argmin()])
    before, after = rates.at(lowest), rates.last
    if before is None or after is None or before <= 0:
        return None
    if after < GRADUAL * before:
        return None
    if loss_rise(loss.before(lowest + 1)) > 1.0 or lowest < loss.step[2]:
        return None
    return RateRise(int(rates.step[-1]), before, after, False)


def _went_well_before(evidence: Evidence, step: int) -> bool:
    """Return whether there were three steps and more before, with a loss that did not rise and was not far off."""
    before = loss_curve(evidence).before(step).finite
    return len(before) >= 3 and loss_rise(before) < 3.0
