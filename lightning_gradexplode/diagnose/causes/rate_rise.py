"""A learning rate that was raised to where the weights no longer bear it."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.optimization import LARGE_UPDATE, rate_is_disproved
from lightning_gradexplode.diagnose.curves import Curve, FloatArray, critical_step, curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.trends import line_search, loss_rise, trend
from lightning_gradexplode.records import Cause, Evidence

SUDDEN, GRADUAL = 1.9, 1.5
"""So many times the rate before: from one step to the next, and since the loss was lowest."""

STEADILY = 5.0
"""So many times the first rate, a rate that rises at each step has left that of the start."""

SURELY = 2.0
"""So many times the rate at which the loss was lowest, a rate that rises step by step has left what is borne."""

SMALL = 0.01
"""A rate of so small a part of the highest one before it harms nothing, however fast it rose."""

WORSE = 4.0
"""So many times the loss before a rise, the loss has left its level."""


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
    if delay == 0:
        return "the first critical finding came at the step of the rise."
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
    if after < GRADUAL * before and not _rises_until_it_overshoots(evidence, rates):
        return None
    if loss_rise(loss.before(lowest + 1)) > 1.0 or lowest < loss.step[2]:
        return None
    return RateRise(int(rates.step[-1]), before, after, False, lowest)


def _rises_until_it_overshoots(evidence: Evidence, rates: Curve) -> bool:
    """Return whether the rate has never fallen and is several times the first one, and the last step overshoots.

    A rate that rises steadily leaves what is borne by little when the loss begins to rise.
    """
    search = line_search(evidence)
    rises = bool((rates.value[1:] >= rates.value[:-1]).all()) and rates.value[-1] > rates.value[-2]
    return search is not None and search.overshoots and rises and rates.value[-1] >= STEADILY * rates.value[0] > 0


def _went_well_before(evidence: Evidence, step: int) -> bool:
    """Return whether there were three steps and more before, with a loss that did not rise and was not far off."""
    before = loss_curve(evidence).before(step).finite
    return len(before) >= 3 and loss_rise(before) < 3.0
