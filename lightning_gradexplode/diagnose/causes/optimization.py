"""A learning rate that is too high from the start."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.inactive_units import units_became_inactive
from lightning_gradexplode.diagnose.causes.indication import Indication
from lightning_gradexplode.diagnose.causes.loss_factors import large_factor
from lightning_gradexplode.diagnose.causes.lost_progress import progress_lost_by_update
from lightning_gradexplode.diagnose.causes.within_step import without_line_search
from lightning_gradexplode.diagnose.curves import critical_step, curve, failing_step, is_critical, loss_curve
from lightning_gradexplode.diagnose.first_update import (
    FAILS_WITHIN,
    first_update_ratio,
    jump_by_first_update,
    update_before_failure,
)
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.long_steps import overlong_step
from lightning_gradexplode.diagnose.optimizers import uses_adaptive_optimizer, usual_rate
from lightning_gradexplode.diagnose.remedies.rate import rate_remedies
from lightning_gradexplode.diagnose.short_steps import rises_in_short_steps
from lightning_gradexplode.diagnose.trends import (
    DIVERGED_WEIGHTS,
    LARGE_UPDATE,
    MANY_STEPS,
    SHORT_STEP,
    Trend,
    begins_abruptly,
    first_order_changes,
    grows_calmly,
    initial_weight_norm,
    is_growing,
    starts_huge,
    trend,
)
from lightning_gradexplode.records import Cause, Evidence

LARGE_GROWTH = 1.2
"""Growth of the weights' norm from which large updates may be the cause."""

FIRST_ORDER = 2.0
"""Multiple of the slope along an update up to which the update raises the loss to first order: no overshoot."""

OVERSHOT = 2.0
"""Least of `first_order_changes` from which updates overshoot: from two on, a step goes beyond the minimum of a
parabola."""

MAX_LATE_CONFIDENCE = 0.7
"""Largest confidence that the rate is the cause after many steps, or if a term of the loss is multiplied by a large
number."""

ENOUGH_ATTEMPTS = 4
"""Number of lower rates, each half of the one before, with the same failure, after which the rate is not the cause."""


def learning_rate(evidence: Evidence) -> Cause | None:
    """Return the cause if updates overshoot from the start on.

    Each of these rules it out: a failure without any growth before, an update that lowers the loss of its own batch,
    weights that keep their norm, and lower rates with the same failure. After many steps, a usual rate is no cause
    unless an overshoot was measured, or the weights have doubled within the first steps: something may have grown since
    the start, such as targets or a factor of the loss.
    """
    harm = progress_lost_by_update(evidence) or units_became_inactive(evidence)
    if harm is not None:
        return harm
    cause = rate_too_high(evidence) or without_line_search(evidence)
    steps_before = critical_step(evidence) - evidence.run.first_step
    if cause is None or steps_before < MANY_STEPS:
        return cause
    changes = first_order_changes(evidence)
    is_measured = line_search(evidence) is not None or (changes is not None and changes[0] > OVERSHOT)
    if not (is_measured or exceeds_usual(evidence) or _has_helped(evidence) or _grew_from_the_start(evidence)):
        return None
    sentence = f"There were {steps_before} steps before without a critical finding."
    return replace(cause, evidence=(*cause.evidence, sentence), confidence=min(cause.confidence, MAX_LATE_CONFIDENCE))


def _grew_from_the_start(evidence: Evidence) -> bool:
    """Return whether the weights' norm has doubled within the first steps, and most losses were not above the first.

    Updates were large then, and no target or factor of the loss has grown that would have raised the loss.
    """
    end = evidence.run.first_step + MANY_STEPS
    weights, start = curve(evidence, "weight_norm").before(end).greatest, initial_weight_norm(evidence)
    loss = loss_curve(evidence).before(end)
    if weights is None or start is None or loss.first is None or loss.median is None:
        return False
    return weights >= DIVERGED_WEIGHTS * start and loss.median <= loss.first


def rate_too_high(evidence: Evidence) -> Cause | None:
    """Return the same cause whenever updates overshoot, however late."""
    course, search = trend(evidence), line_search(evidence)
    overshoot, unusual, helped = _overshoot(evidence), _unusual_rate(evidence), _has_helped(evidence)
    is_jump = search is None and overshoot is not None
    if not (course.has_diverged or is_jump) or rate_is_disproved(evidence):
        return None
    if overshoot is None and _is_ruled_out(evidence, course):
        return None
    others = [*_large_updates(evidence, course), *unusual, *helped]
    if overshoot is None and not others:
        return None
    confidence = 0.35 if overshoot is None else overshoot.confidence
    confidence += sum(one.confidence for one in others)
    sentences = [one.sentence for one in ([] if overshoot is None else [overshoot]) + others]
    if starts_huge(evidence):
        confidence *= 0.5  # before any update, which the rate cannot cause
    if perturbs(evidence) and not unusual:
        confidence *= 0.6  # the length of its other step, to perturbed weights, may be too large as well
    if search is None and not helped:
        is_unknown = loss_curve(evidence).first is None and replacing_update(evidence) is None
        if is_unknown or (evidence.batch is None and not unusual):
            return None  # no overshoot was measured, and the scale of the data may be the cause
        if len(evidence.run.optimizers) > 1 and overshoot is None:
            return None  # the losses of several objectives, such as those of adversaries, also rise in healthy runs
        confidence *= 0.6 if begins_abruptly(evidence) else 1.0
    advice, factor = rate_remedies(evidence, course), large_factor(evidence)
    if factor is not None:
        sentences.append(
            f"The loss, or a term of it, is multiplied by {factor:.3g}, and each step is in proportion to it."
        )
        confidence = min(confidence, MAX_LATE_CONFIDENCE)
        advice = (advice[0], f"or multiply the term by far less than {factor:.3g}", *advice[1:])
    return Cause("learning-rate", None, tuple(sentences), min(confidence, 0.95), advice)


def overshoots(evidence: Evidence) -> bool:
    """Return whether updates that overshoot were measured."""
    search, changes = line_search(evidence), first_order_changes(evidence)
    passes = search is not None and search.overshoots and search.falls_at_first
    return passes or (changes is not None and changes[0] > OVERSHOT)


def disruptive_update(evidence: Evidence) -> str | None:
    """Return the size of the update before a failure, or of the first one, if it was disruptive.

    That is, as large as the weights, at an unusually high rate.
    """
    ratio = update_before_failure(evidence)
    if ratio is not None and ratio >= 1 and exceeds_usual(evidence) and not starts_huge(evidence):
        return f"The update before changed the weights by {ratio:.3g} times their norm."
    return replacing_update(evidence)


def replacing_update(evidence: Evidence) -> str | None:
    """Return the size of the first update of a run that fails early, if it has replaced the weights.

    With an optimizer that normalizes its steps, that is due to the rate alone, whatever the gradients are.
    """
    if not exceeds_usual(evidence) or starts_huge(evidence) or evidence.run.is_resumed:
        return None
    ratio, steps = first_update_ratio(evidence), critical_step(evidence) - evidence.run.first_step
    if ratio is None or ratio < 1 or steps >= FAILS_WITHIN or not uses_adaptive_optimizer(evidence.run):
        return None
    return f"The first update changed the weights by {ratio:.3g} times their norm."


def _overshoot(evidence: Evidence) -> Indication | None:
    """Return the evidence that an update overshoots: the loss along it, or the effect of the first update."""
    search = line_search(evidence)
    if search is None or not search.overshoots or search.highest - search.start <= FIRST_ORDER * search.slope:
        jump = jump_by_first_update(evidence) or disruptive_update(evidence) or _overlong_step(evidence)
        return None if jump is None else Indication(0.5, jump)
    is_by_part = search.end <= search.start < search.highest
    loss = search.highest if is_by_part else search.end
    end = f"{loss:.4g}" if math.isfinite(loss) else "a value that is not finite"
    part = "a part of the" if is_by_part else "the whole"
    sentence = f"With {part} update the loss of the same batch goes from {search.start:.4g} to {end}"
    if search.falls_at_first:
        sentence += f", with {search.best_factor:g} of it to {search.least:.4g}: the step overshoots"
    return Indication(0.4 if search.climbs else 0.8 if search.falls_at_first else 0.65, f"{sentence}.")


def _overlong_step(evidence: Evidence) -> str | None:
    """Return the size of a step that went too far, None with a line search or without growth of the weights."""
    if line_search(evidence) is not None or trend(evidence).weight_growth < LARGE_GROWTH:
        return None
    return overlong_step(evidence)


def _is_ruled_out(evidence: Evidence, course: Trend) -> bool:
    """Return whether no update overshoots, or there is no evidence of an overshoot."""
    if max(course.weight_growth / LARGE_GROWTH, course.update_ratio / LARGE_UPDATE) < 1.0:
        return True
    if grows_calmly(evidence) and not exceeds_usual(evidence):
        return True
    if line_search(evidence) is not None:
        return is_growing(evidence)  # the update lowers the loss of its own batch
    least, greatest = first_order_changes(evidence) or (0.0, math.inf)
    is_short = greatest < SHORT_STEP or (least <= OVERSHOT and rises_in_short_steps(evidence))
    has_merely_grown = not (course.has_risen or is_critical(evidence) or _unusual_rate(evidence))
    return is_short or _sets_its_lengths(evidence) or has_merely_grown


def _large_updates(evidence: Evidence, course: Trend) -> list[Indication]:
    """Return the evidence of a large update, and of the growth of the weights."""
    found = []
    if course.update_ratio >= LARGE_UPDATE:
        sentence = f"One update changed the weights by {course.update_ratio:.3g} times their norm; usual is 0.001."
        found.append(Indication(0.1, sentence))
    if course.weight_growth >= LARGE_GROWTH:
        weights = curve(evidence, "weight_norm").before(failing_step(evidence)).finite
        largest = int(weights.step[weights.value.argmax()])
        sentence = (
            f"After the update of step {largest} the norm of the weights is {course.weight_growth:.3g} times that of "
            "the start."
        )
        found.append(Indication(0.0, sentence))
    return found


def _has_helped(evidence: Evidence) -> list[Indication]:
    helped = any(one.helped for one in evidence.attempts if _lowers_rate(one.action))
    return [Indication(0.15, "A lower learning rate has helped.")] if helped else []


def perturbs(evidence: Evidence) -> bool:
    """Return whether gradients may be those at perturbed weights: sharpness-aware minimization."""
    kinds = [one for one in evidence.run.optimizers if "adadelta" not in one.kind.lower()]  # its rho is an average's
    return evidence.moves_weights or any("rho" in group for one in kinds for group in one.groups)


def _sets_its_lengths(evidence: Evidence) -> bool:
    """Return whether the optimizer derives the length of its steps from the curvature, with a rate of at most one.

    The length of such steps is no evidence against the rate: inconsistent gradients make them as long.
    """
    kinds, rate = {one.kind for one in evidence.run.optimizers}, remedies.learning_rate(evidence)
    return kinds == {"LBFGS"} and rate is not None and rate <= 1


def rate_is_disproved(evidence: Evidence) -> bool:
    """Return whether lower rates were tried and had the same failure."""
    tried = [one for one in evidence.attempts if _lowers_rate(one.action)]
    # An attempt that was followed by another one did not help, even if its result is not known.
    failed = sum(
        one.helped is False or (one.helped is None and place < len(tried) - 1) for place, one in enumerate(tried)
    )
    return failed >= ENOUGH_ATTEMPTS and not any(one.helped for one in tried)


def _lowers_rate(action: str) -> bool:
    return action in ("rollback", "reduce-lr", "Rollback", "ReduceLearningRate")


def _unusual_rate(evidence: Evidence) -> list[Indication]:
    rate, usual = remedies.learning_rate(evidence), usual_rate(evidence.run)
    if rate is None or usual is None or rate <= usual[1]:
        return []
    sentence = f"A learning rate of {rate:g} is high for {usual[0]}; it is seldom above {usual[1]:g}."
    return [Indication(0.1, sentence)]


def exceeds_usual(evidence: Evidence) -> bool:
    """Return whether the learning rate is one with which most networks fail."""
    return bool(_unusual_rate(evidence))
