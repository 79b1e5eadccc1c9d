"""The learning rate: too high from the start, or raised to where the weights no longer bear it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import Curve, FloatArray, critical_step, curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.trends import (
    LineSearch,
    Trend,
    begins_abruptly,
    is_growing,
    line_search,
    loss_rise,
    starts_huge,
    trend,
)
from lightning_gradexplode.records import Cause, Evidence, RunFacts

USUAL_RATES = {"adam": 0.01, "rmsprop": 0.01, "lion": 0.001, "adagrad": 0.1, "sgd": 0.5}
"""Learning rates above which most networks fail with an optimizer."""

LARGE_UPDATE = 0.1
"""Update over weights from which it is large; usual is 0.001."""

FIRST_UPDATE = 0.01
"""Ratio of the first update to the weights that most networks bear."""

SUDDEN, GRADUAL = 1.9, 1.5
"""So many times the rate before: from one step to the next, and since the loss was lowest."""

SURELY = 2.0
"""So many times the rate at which the loss was lowest, a rate that rises step by step has left what is borne."""

WORSE = 4.0
"""So many times the loss before a rise, the loss has left its level."""

ENOUGH_ATTEMPTS = 4
"""So many lower rates that ended the same way, each half of the one before, and the rate is not the cause."""


def learning_rate(evidence: Evidence) -> Cause | None:
    """Return the cause if updates overshoot.

    A run that fails with nothing grown before, an update that lowers the loss of its own batch, weights that keep their
    size, and lower rates that ended the same way each rule it out.
    """
    course = trend(evidence)
    search = line_search(evidence)
    if not course.has_diverged or rate_is_disproved(evidence):
        return None
    sentences: list[str] = []
    confidence = 0.4
    if search is not None and search.overshoots:
        sentences.append(_overshoot(search))
        confidence = 0.4 if search.climbs else 0.8 if search.falls_at_first else 0.65
    elif search is not None and is_growing(evidence):
        return None  # the update lowers the loss of its own batch
    elif max(course.weight_growth / 1.2, course.update_ratio / LARGE_UPDATE) < 1.0:
        return None
    if course.update_ratio >= LARGE_UPDATE:
        sentences.append(f"One update changed the weights by {course.update_ratio:.3g} of their norm; usual is 0.001.")
        confidence += 0.1
    if course.weight_growth >= 2:
        weights = curve(evidence, "weight_norm").before(failing_step(evidence)).finite
        largest = f" at step {int(weights.step[weights.value.argmax()])}" if len(weights) else ""
        sentences.append(
            f"The weights have grown to {course.weight_growth:.3g} times their norm at the start{largest}."
        )
    unusual = _unusual_rate(evidence)
    if unusual:
        sentences.append(unusual)
        confidence += 0.1
    helped = any(one.helped for one in evidence.attempts if _lowers_rate(one.action))
    if helped:
        sentences.append("A lower learning rate has helped.")
        confidence += 0.15
    if starts_huge(evidence):
        confidence *= 0.5  # that was so before any update
    if search is None and not helped:
        if loss_curve(evidence).first is None or (evidence.batch is None and not unusual):
            return None  # neither overshoot is known, nor a rise of the loss with data on a proper scale
        confidence *= 0.6 if begins_abruptly(evidence) else 1.0
    return Cause("learning-rate", None, tuple(sentences), min(confidence, 0.95), rate_remedies(evidence, course))


def _overshoot(search: LineSearch) -> str:
    end = f"{search.end:.4g}" if math.isfinite(search.end) else "a value that is not finite"
    sentence = f"With the whole update the loss of the same batch goes from {search.start:.4g} to {end}"
    if search.falls_at_first:
        sentence += f", with {search.best_factor:g} of it to {search.least:.4g}: the step overshoots"
    return f"{sentence}."


def rate_remedies(evidence: Evidence, course: Trend) -> tuple[str, ...]:
    """Return the remedies for a learning rate that is too high: a lower one, a warm-up, clipping."""
    return (
        *remedies.lower_rate(evidence, rate_factor(evidence, course)),
        *remedies.warm_up(evidence),
        *remedies.clip(evidence),
    )


def rate_factor(evidence: Evidence, course: Trend) -> float:
    """Return by how much to lower the rate: what the line search has found, else from the size of the updates."""
    borne, search = _borne_factor(evidence), line_search(evidence)
    if search is None or not search.overshoots:
        return min(0.01, max(borne, 1e-4)) if course.update_ratio > 1 else min(0.1, max(borne, 0.01))
    if search.best_factor > 0:
        factor = min(0.3, search.best_factor)
        return math.sqrt(factor * borne) if borne < factor else factor
    return min(0.003, borne)  # not even a hundredth of the step helps


def _borne_factor(evidence: Evidence) -> float:
    """Return the factor of the rate with which the first update would have been of a size that most networks bear.

    The step that was measured began with weights that others had changed; the first update did not. Momentum makes
    later ones up to 1 / (1 - momentum) times as large, of which the root is taken.
    """
    first = curve(evidence, "update_ratio").first or 0.0
    momenta = [group.get("momentum", 0.0) for one in evidence.run.optimizers for group in one.groups]
    most = max((float(one) for one in momenta if isinstance(one, (int, float)) and 0 <= one < 1), default=0.0)
    return max(FIRST_UPDATE * math.sqrt(1 - most) / first, 1e-8) if first > 0 else 1.0


def rate_is_disproved(evidence: Evidence) -> bool:
    """Return whether lower rates were tried and ended the same way."""
    tried = [one for one in evidence.attempts if _lowers_rate(one.action)]
    # One that was followed by another did not help, even if nothing more is known of it.
    failed = sum(
        one.helped is False or (one.helped is None and place < len(tried) - 1) for place, one in enumerate(tried)
    )
    return failed >= ENOUGH_ATTEMPTS and not any(one.helped for one in tried)


def _lowers_rate(action: str) -> bool:
    return action in ("rollback", "reduce-lr", "Rollback", "ReduceLearningRate")


def _unusual_rate(evidence: Evidence) -> str:
    rate, usual = remedies.learning_rate(evidence), usual_rate(evidence.run)
    if rate is None or usual is None or rate <= usual[1]:
        return ""
    return f"A learning rate of {rate:g} is high for {usual[0]}; it is seldom above {usual[1]:g}."


def usual_rate(run: RunFacts) -> tuple[str, float] | None:
    """Return an optimizer and the rate above which most networks fail with it, None if none is of a known kind."""
    for one in run.optimizers:
        for name, usual in USUAL_RATES.items():
            if name in one.kind.lower():
                return one.kind, usual
    return None


@dataclass(frozen=True, slots=True)
class RateRise:
    """A rise of the learning rate.

    Args:
        step: The step at which the rate was raised, of a gradual rise the one at which it was highest.
        before: The rate before.
        after: The rate after.
        sudden: Whether it rose from one step to the next.
        since: The last step at which it was as before.
    """

    step: int
    before: float
    after: float
    sudden: bool
    since: int


def learning_rate_jump(evidence: Evidence) -> Cause | None:
    """Return the cause if all went well until the learning rate rose."""
    rise = rate_rise(evidence)
    course = trend(evidence)
    if rise is None or not course.has_diverged or rate_is_disproved(evidence):
        return None
    if not has_worsened_since(evidence, rise):
        return None
    delay = critical_step(evidence) - rise.step
    confidence = (0.92 if delay <= 30 else 0.75) if rise.sudden else 0.7
    how = f"at step {rise.step}" if rise.sudden else f"gradually up to step {rise.step}"
    level = loss_curve(evidence).before(rise.step).median
    sentences = [f"The learning rate rose from {rise.before:.3g} to {rise.after:.3g} {how}."]
    if level is not None:
        sentences.append(f"Up to then the loss was steady, with a median of {level:.4g}; {_after(evidence, delay)}")
    schedule = f" ({', '.join(evidence.run.schedulers)})" if evidence.run.schedulers else ""
    # The rate at which the loss was lowest is the last that was borne, at the edge of what is.
    kept = rise.before if rise.sudden else 0.3 * rise.before
    peak = remedies.rounded(max(rise.before, rise.after * 0.1) if rise.sudden else kept, 1)
    return Cause(
        "learning-rate-jump",
        f"the learning rate at step {rise.step}",
        tuple(sentences),
        confidence,
        (
            f"keep the learning rate near {kept:.3g}, or let the schedule{schedule} peak at `lr={peak:g}` at most",
            *remedies.clip(evidence),
            *remedies.rollback(evidence),
        ),
    )


def has_worsened_since(evidence: Evidence, rise: RateRise) -> bool:
    """Return whether something has gone wrong since a rise, and not only with the batch of the incident.

    The last step overshoots; or the rise was three steps ago or more; or the rate is twice what was borne; or the
    updates after a sudden rise were large, and the loss is far above what it was before; or it has doubled since the
    steps around the one from which the rate has risen.
    """
    search = line_search(evidence)
    critical = critical_step(evidence)
    if search is None or search.overshoots or rise.step <= critical - 3:
        return True
    loss = loss_curve(evidence).before(failing_step(evidence)).finite
    if rise.sudden:
        update = curve(evidence, "update_ratio").since(rise.step).before(failing_step(evidence)).greatest or 0.0
        before, after = loss.before(rise.step + 1).median, loss.since(rise.step + 1).greatest
        return update >= LARGE_UPDATE and before is not None and after is not None and after > WORSE * before > 0
    around = loss.since(rise.since - 5).before(rise.since + 6).median
    late = loss.before(critical).since(critical - 10).median
    return rise.after >= SURELY * rise.before or (around is not None and late is not None and late > 2 * around > 0)


def _after(evidence: Evidence, delay: int) -> str:
    return f"the first critical finding came {delay} step{'s' if delay != 1 else ''} after the rise."


def rate_rise(evidence: Evidence) -> RateRise | None:
    """Return the rise of the learning rate before the incident, None if there was none or it did not go well before."""
    end = min(critical_step(evidence), failing_step(evidence))
    rates = curve(evidence, "learning_rate").before(end + 1).finite
    steps, values = rates.step, rates.value
    rises = [
        RateRise(
            int(steps[place]),
            _borne(values[:place], float(values[place])),
            float(values[place]),
            True,
            int(steps[place - 1]),
        )
        for place in range(1, len(values))
        if values[place] >= SUDDEN * values[place - 1] > 0 and end - steps[place] <= 100
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
    if before is None or after is None or before <= 0 or after < GRADUAL * before:
        return None
    if loss_rise(loss.before(lowest + 1)) > 1.0 or lowest < loss.step[2]:
        return None
    return RateRise(int(rates.step[-1]), before, after, False, lowest)


def _went_well_before(evidence: Evidence, step: int) -> bool:
    """Return whether there were three steps and more before, with a loss that did not rise and was not far off."""
    before = loss_curve(evidence).before(step).finite
    return len(before) >= 3 and loss_rise(before) < 3.0
