"""Objectives without a lower bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lightning_gradexplode.diagnose.causes.ascent import ascent
from lightning_gradexplode.diagnose.causes.indication import Indication
from lightning_gradexplode.diagnose.causes.loss_factors import raised_factor
from lightning_gradexplode.diagnose.causes.plain_outputs import plain_outputs
from lightning_gradexplode.diagnose.causes.unbounded_parts import critic_of, floor_remedies, learned_factor, spread_of
from lightning_gradexplode.diagnose.curves import Curve, curve, failing_step, fifths, is_critical, loss_curve
from lightning_gradexplode.diagnose.faults.operations import base_name
from lightning_gradexplode.diagnose.learning import ENOUGH
from lightning_gradexplode.diagnose.trends import Trend, initial_weight_norm, trend
from lightning_gradexplode.records import Cause, Evidence, FloatArray

FAR_BELOW = 10.0
"""Multiple of its initial size by which a loss has to have fallen below zero to be without a lower bound."""

BELOW = 5.0
"""The same multiple for a loss that falls faster and faster while its gradient grows, unlike a bounded loss."""

MIN_LOSSES = 10
"""Number of losses from which it is known whether they level off."""

MIN_SHARE_DOWNWARD = 0.6
"""Share of its steps at which a loss that falls throughout gets smaller."""

STEADY = 0.8
"""Share of its steps at which a loss that falls steadily gets smaller, and of its fall over the first half of the run
by which it falls over the second."""

STEEPER = 1.5
"""Growth of the gradient with which a loss does not approach a minimum."""

FURTHER = 2.0
"""Multiple of its negative start that a loss has to have fallen to."""

FAR_GROWN = 4.0
"""Growth of the weights along a loss that falls at a steady pace with the same gradient, from which it has no floor."""

ALIKE = 0.9
"""Ratio of two medians of the gradient norm from which they differ by noise only."""

HAS_GROWN = 2.0
"""Growth of the weights' norm with which a negative term grows."""

GROWING = 1.1
"""Growth of the weights' norm from which they drive the fall of a loss. A generator makes its loss fall with hardly
larger weights, as far as the bounded critic lets it."""

STILL_FALLING = 0.3
"""Share of its fall over the first half of the run by which a loss with a bounded term falls at most in the second."""

_NEVER_NEGATIVE = frozenset(
    {"huber_loss", "l1_loss", "mse_loss", "nll_loss", "nll_loss_forward", "smooth_l1_loss", "soft_margin_loss"}
)
"""Loss functions that are never below zero, whatever their targets are, if they take logarithms of probabilities."""


def loss_without_floor(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss falls without a lower bound, or is maximized."""
    loss = loss_curve(evidence).before(failing_step(evidence)).finite
    course = trend(evidence)
    other = _maximized(evidence, loss, course) or raised_factor(evidence) or ascent(evidence)
    if other is not None:
        return other
    if len(loss) < 3 or loss.value.min() >= 0:
        return None
    plain = next(plain_outputs(evidence), None) or next(negative_term(evidence), None)
    if plain is not None:
        return plain
    fall = _unbounded_fall(evidence, loss)
    if fall is None:
        return None
    sentences = [fall.sentence]
    if course.gradient_growth > 3:
        sentences.append(f"The gradient norm has grown {course.gradient_growth:.3g} times meanwhile.")
    if course.weight_growth > 1.2:
        sentences.append(f"The weights have grown to {course.weight_growth:.3g} times their norm at the start.")
    where = critic_of(evidence.run) or spread_of(evidence.run) or learned_factor(evidence.run)
    return Cause("loss-without-floor", where, tuple(sentences), fall.confidence, floor_remedies(evidence.run))


def _maximized(evidence: Evidence, loss: Curve, course: Trend) -> Cause | None:
    """Return the cause if the optimizers maximize the loss.

    Groups that maximize while others minimize are intended, such as weights of terms.
    """
    groups = [group for one in evidence.run.optimizers for group in one.groups]
    if not groups or any(group.get("maximize") is not True for group in groups):
        return None
    rises = loss.first is not None and loss.last is not None and loss.last > loss.first
    if not rises and not course.has_diverged:
        return None
    return Cause(
        "loss-without-floor",
        None,
        (f"The optimizer maximizes the loss: it went from {loss.first or 0:.4g} to {loss.last or 0:.4g}.",),
        0.9,
        ("minimize it: `maximize=False` in the optimizer",),
    )


def _unbounded_fall(evidence: Evidence, loss: Curve) -> Indication | None:
    """Return the evidence that a loss below zero falls without a bound.

    It is far below zero and does not level off, or was still falling when the run failed, or fell faster and faster.
    """
    first, least, lowest = float(loss.value[0]), float(loss.value.min()), int(loss.value.argmin())
    late = loss.value[int(0.8 * (len(loss) - 1)) :]
    falls_on = critic_of(evidence.run) is not None or not _levels_off(loss.value) or _falls_steadily(loss.value)
    if least < -FAR_BELOW * max(abs(first), 0.1) and falls_on:
        falls_mostly = _share_downward(loss.value[: lowest + 1]) >= MIN_SHARE_DOWNWARD
        return Indication(
            0.85 if falls_mostly and (loss.median or 0.0) < 0 else 0.6,
            f"The loss fell from {first:.4g} to {least:.4g}, far below zero, and does not level off.",
        )
    if not _has_broken(evidence):
        return None
    # These are more certain than an overflow at the end of the fall, which is a consequence.
    if first > 0 and len(loss) >= MIN_LOSSES and late.min() <= least + 0.05 * (first - least):
        return Indication(
            0.6,
            f"The loss fell from {first:.4g} through zero to {least:.4g}, still falling "
            f"{len(late) - 1 - int(late.argmin())} steps before it failed: a likelihood without an upper bound.",
        )
    if _falls_faster_and_faster(loss, curve(evidence, "grad_norm"), lowest):
        return Indication(
            0.6,
            f"The loss fell from {first:.4g} to {least:.4g}, faster and faster, before the run failed, and its "
            "gradient grew meanwhile; near a minimum both get smaller.",
        )
    return None


def negative_term(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a loss that contains a function that is never negative is below zero, and falls further."""
    replay, loss = evidence.replay, loss_curve(evidence).before(failing_step(evidence)).finite
    terms = (*evidence.first_losses, *(replay.losses if replay is not None else ()))
    # A loss of each element may be multiplied by numbers of any sign, as by the advantages of a policy.
    single, many = (
        {base_name(one.name) for one in terms if (one.value is None) is unknown} for unknown in (False, True)
    )
    operations = set(replay.operation_names if replay is not None else ())
    known = sorted(((single | operations) - many) & _NEVER_NEGATIVE)
    first, least, weights = loss.first, loss.least, trend(evidence).weight_growth
    if len(evidence.run.optimizers) > 1:
        return  # the functions may be those of another loss
    if not known or first is None or least is None or weights < HAS_GROWN or not least < -FURTHER * abs(first):
        return
    if first >= 0 and (len(loss) < MIN_LOSSES or _levels_off(loss.value, STILL_FALLING)):
        return  # such as a loss with a bounded bonus
    yield Cause(
        "loss-without-floor",
        learned_factor(evidence.run),
        (
            f"The loss is {first:.4g} at the start and has fallen to {least:.4g}, although `{known[0]}` is never below "
            "zero: another term of it is negative, and nothing bounds it.",
            f"The weights have grown to {weights:.3g} times their norm at the start.",
        ),
        0.8,
        (
            "look for a penalty with a negative factor: `loss = error + factor * penalty` with `factor >= 0`",
            *floor_remedies(evidence.run),
        ),
    )


def _levels_off(losses: FloatArray, share: float = 1.0) -> bool:
    """Return whether a loss has fallen over the second half of the run by less than a share of its fall before."""
    if len(losses) < MIN_LOSSES:
        return False
    levels = fifths(losses)
    return levels[2] - levels[4] < share * (levels[0] - levels[2])


def _falls_steadily(losses: FloatArray) -> bool:
    """Return whether a loss gets smaller at nearly every step, and hardly more slowly in the end."""
    return _share_downward(losses) >= STEADY and not _levels_off(losses, STEADY)


def _falls_faster_and_faster(loss: Curve, norm: Curve, lowest: int) -> bool:
    """Return whether a loss of at least `MIN_LOSSES` steps falls faster and faster, while the gradient grows."""
    falls, norms = loss.value[: lowest + 1], norm.finite.value[: lowest + 1]
    if len(falls) < MIN_LOSSES or len(norms) < MIN_LOSSES:
        return False
    levels, slopes = fifths(falls), fifths(norms)
    return _share_downward(falls) >= MIN_SHARE_DOWNWARD and _speeds_up(levels) and slopes[4] > STEEPER * slopes[0]


def _speeds_up(levels: Sequence[float]) -> bool:
    """Return whether a loss falls, and by more over its second half than over its first."""
    return levels[2] - levels[4] > levels[0] - levels[2] > 0


def _share_downward(losses: FloatArray) -> float:
    """Return the share of steps at which a loss gets smaller."""
    return float((losses[1:] < losses[:-1]).mean()) if len(losses) > 1 else 0.0


def _has_broken(evidence: Evidence) -> bool:
    """Return whether a run has diverged; growth of the weights alone, as with a likelihood, is not sufficient."""
    course = trend(evidence)
    return course.has_diverged if is_critical(evidence) else course.has_risen


def keeps_falling(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a loss falls far below zero, faster and faster, while its gradient and the weights grow.

    A bounded loss falls more and more slowly as it approaches its minimum, and its gradient shrinks. The negative
    logarithm of a density that narrows falls more and more slowly, too. With an optimizer that normalizes its steps, a
    loss without a lower bound may fall at a steady pace as the weights grow.
    """
    loss, norm = loss_curve(evidence).finite.value, curve(evidence, "grad_norm").finite.value
    if len(loss) < ENOUGH or len(norm) < ENOUGH:
        return
    levels, slopes = fifths(loss), fifths(norm)
    start = float(np.median(loss[:5]))
    growth = curve(evidence, "weight_norm").last, initial_weight_norm(evidence)
    # A density may well have a negative loss from the start.
    is_far = levels[-1] < -(BELOW if start > -0.1 else FAR_BELOW) * max(abs(start), 0.2)
    speeds_up, keeps_its_pace = _speeds_up(levels) and levels[4] < levels[3], _keeps_its_pace(evidence, levels)
    has_grown = slopes[-1] > STEEPER * slopes[0] and (growth[0] or 0.0) > GROWING * (growth[1] or math.inf)
    # The slope of a loss that is linear in the outputs is bounded, and the weights grow on along it.
    is_linear = keeps_its_pace and slopes[-1] >= ALIKE * slopes[1] and trend(evidence).weight_growth >= FAR_GROWN
    if not (is_far and ((has_grown and (speeds_up or keeps_its_pace)) or is_linear)):
        return
    yield Cause(
        "loss-without-floor",
        critic_of(evidence.run) or spread_of(evidence.run) or learned_factor(evidence.run),
        (
            f"The loss fell from {start:.4g} to {levels[-1]:.4g}: by {levels[0] - levels[2]:.3g} over the "
            f"first half of the run and by {levels[2] - levels[4]:.3g} over the second.",
            f"The norm of the gradient went from {slopes[0]:.3g} to {slopes[-1]:.3g} meanwhile; it gets smaller near "
            "the minimum of a loss.",
        ),
        0.75,
        floor_remedies(evidence.run),
    )


def _keeps_its_pace(evidence: Evidence, levels: Sequence[float]) -> bool:
    """Return whether the only loss of a run falls hardly more slowly in the end, while the weights have doubled.

    What a policy maximizes, by an optimizer of its own, may fall like that until all is learned.
    """
    falls_on = levels[2] - levels[4] >= STEADY * (levels[0] - levels[2]) > 0
    return falls_on and len(evidence.run.optimizers) == 1 and trend(evidence).weight_growth >= HAS_GROWN
