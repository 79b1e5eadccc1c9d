"""The trends of a run before an incident: growth of loss, gradients and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.diagnose.curves import (
    Curve,
    critical_step,
    curve,
    failing_step,
    first_nonfinite,
    history_at_fault,
    loss_curve,
)
from lightning_gradexplode.records import Evidence

DIVERGED_LOSS = 4.0
"""Rise of the loss above its start, in units of its size or noise, from which it has left its starting region."""

DIVERGED_GRADIENT = 30.0
"""Growth of the gradient norm over its usual level from which it has left the calm range."""

DIVERGED_WEIGHTS = 2.0
"""Growth of the weights' norm over that of the start from which updates have changed the scale of the weights."""


HUGE_LOSS, HUGE_GRADIENT = 1e6, 1e4
"""Loss and gradient norm before any update above which the learning rate is not at fault."""

SHORT_STEP = 0.5
"""Largest value of `first_order_changes` below which no update overshoots."""

ORDINARY_GROWTH = 1.3
"""Growth of the weights' norm from one measurement to the next from which the updates in between were large."""

MANY_STEPS = 20
"""Number of steps without a critical finding, from which the learning rate is not at fault from the start."""

LARGE_UPDATE = 0.1
"""Ratio of the update to the weights from which an update is large; usual is 0.001."""

DISRUPTIVE_UPDATE = 0.3
"""Ratio of the update to the weights from which an update may have made the loss jump, even if all are as large."""

CALM_RISE = 1.0
"""Rise of the loss above its start, in units of its size or noise, up to which it has not risen."""

UNUSUAL = 3.0
"""Multiple of the usual size from which an update is unusual."""

JUMP = 30.0
"""Multiple of the largest value before from which a loss or a gradient has jumped."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The growth in a run up to the step at which it failed, or up to now if nothing has become non-finite.

    Args:
        steps: Number of steps with a finite loss or gradient.
        loss_rise: Largest rise of the loss above its start, in units of the size or the noise of the first losses.
        gradient_growth: Largest gradient norm near the incident divided by the usual one before it.
        weight_growth: Largest norm of the weights divided by that of the start.
        update_ratio: Largest ratio of an update to the weights.
    """

    steps: int = 0
    loss_rise: float = 0.0
    gradient_growth: float = 1.0
    weight_growth: float = 1.0
    update_ratio: float = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether loss, gradients or weights had left their starting region."""
        return self.has_risen or self.weight_growth >= DIVERGED_WEIGHTS

    @property
    def has_risen(self) -> bool:
        """Whether loss or gradients had left their starting region; weights also grow in healthy runs."""
        return self.loss_rise >= DIVERGED_LOSS or self.gradient_growth >= DIVERGED_GRADIENT


def trend(evidence: Evidence) -> Trend:
    """Return the growth of loss, gradients and weights before the failure."""
    end = failing_step(evidence)
    loss = loss_curve(evidence).before(end).finite
    norm = curve(evidence, "grad_norm").before(end).finite
    weight = curve(evidence, "weight_norm").before(end)
    ratio = curve(evidence, "update_ratio").before(end)
    start = initial_weight_norm(evidence) or weight.first
    return Trend(
        steps=max(len(loss), len(norm)),
        loss_rise=loss_rise(loss, evidence.step),
        gradient_growth=_gradient_growth(norm, critical_step(evidence)),
        weight_growth=(weight.greatest or 0.0) / start if start and weight.greatest else 1.0,
        update_ratio=ratio.greatest or 0.0,
    )


def loss_rise(loss: Curve, incident: int | None = None) -> float:
    """Return the largest rise of the loss above its start, in units of its size or of its noise.

    The start is the median of the first five losses, or of a quarter of the losses if there are fewer than twenty,
    without those of the incident. The unit is the size of that median, or twice the median change from step to step
    over the first half, whichever is larger.

    Args:
        loss: The loss.
        incident: The step at which the incident began; the rise is that from five steps before it on. None for the
            last five steps.
    """
    loss = loss.finite
    values = loss.value
    if len(values) < 2:
        return 0.0
    first = max(1, min(5, len(values) // 4))
    late = values[-5:]
    if incident is not None:
        first = max(1, min(first, len(loss.before(incident))))
        late = loss.since(incident - 5).value[first if incident - 5 <= loss.step[0] else 0 :]
    level = float(np.median(values[:first]))
    half = values[: max(2, len(values) // 2)]
    with np.errstate(over="ignore", invalid="ignore"):
        noise = 2 * float(np.median(np.abs(np.diff(half)))) if len(half) > 5 else 0.0
        rise = (float(late.max()) if len(late) else level) - level
    unit = max(abs(level), noise, 1e-30)
    return rise / unit if math.isfinite(rise) and math.isfinite(unit) else math.inf


def _gradient_growth(norm: Curve, step: int) -> float:
    """Return the largest norm of the last five steps divided by the median of the calm steps before, else the first."""
    values = norm.finite.value
    values = values[values > 0]
    if len(values) < 2:
        return 1.0
    calm = norm.finite.before(min(step, int(norm.finite.step[-1]))).value
    calm = calm[calm > 0]
    # Norms may grow before the first critical finding already: the median is that of the first half of the steps.
    level = float(np.median(calm[: max(1, len(calm) // 2)])) if len(calm) else float(values[0])
    return float(values[-5:].max()) / level


def grows_calmly(evidence: Evidence) -> bool:
    """Return whether many steps went by before the failure without a rise of the loss or a large update.

    What has grown meanwhile, such as weights or activations, was then no overshoot of the updates.
    """
    course = trend(evidence)
    is_low = loss_curve(evidence).first is not None and course.loss_rise < CALM_RISE
    return course.steps >= MANY_STEPS and is_low and course.update_ratio < LARGE_UPDATE


def initial_weight_norm(evidence: Evidence) -> float | None:
    """Return the norm of all weights of the optimizer at fault before the first step, None if one is not known."""
    place = history_at_fault(evidence)
    histories = evidence.history or evidence.first
    names = histories[place].parameters if place is not None and place < len(histories) else ()
    facts = {one.name: one for one in evidence.run.parameters}
    if not names or not facts.keys() >= set(names):
        return None
    total = sum(facts[name].std ** 2 * math.prod(facts[name].shape) for name in names)
    return math.sqrt(total) if 0 < total < math.inf else None


def first_order_changes(evidence: Evidence) -> tuple[float, float] | None:
    """Return the least and largest relative change of the loss that one update can have caused to first order.

    That is the product of the norms of gradient and update, divided by the loss. If a step goes so far beyond the
    minimum of a parabola that the loss rises, this is at least four.

    Returns:
        Those over the steps whose loss was twice that of the start and more; None with fewer than five of them
        with a measured update, if the loss did not go on rising, as after a jump, or if it can be negative.
    """
    failed = first_nonfinite(evidence)
    end = evidence.now + 1 if failed is None else failed.step
    loss, norm = loss_curve(evidence).before(end), curve(evidence, "grad_norm").before(end)
    ratio, weight = curve(evidence, "update_ratio").before(end), curve(evidence, "weight_norm").before(end)
    values = loss.finite.value
    if len(values) < 10 or not values.min() > 0:
        return None
    above = values > 2 * float(np.median(values[:5]))
    risen, levels = loss.finite.step[above], values[above]
    half = len(levels) // 2
    if half < 3 or not float(np.median(levels[half:])) > 2 * float(np.median(levels[:half])):
        return None
    found = []
    for step in risen.tolist():
        known = [one.at(step) for one in (loss, norm, ratio)] + [weight.before(step + 1).last]
        if all(one is not None for one in known):
            now, gradient, share, weights = (float(one or 0.0) for one in known)
            found.append(gradient * share * weights / now)
    return (min(found), max(found)) if len(found) >= 5 else None


def starts_huge(evidence: Evidence) -> bool:
    """Return whether loss and gradient are huge at the run's first step, before any update.

    With several optimizers all their losses must be huge, since the update of one may change the loss of another.
    """
    loss, norm = loss_curve(evidence).first, curve(evidence, "grad_norm").first
    if evidence.run.is_resumed or loss is None or norm is None:
        return False
    count = max(len(evidence.history), len(evidence.first))
    losses = [loss, *(curve(evidence, "loss", optimizer=place).first for place in range(count))]
    return all(one is None or abs(one) > HUGE_LOSS for one in losses) and norm > HUGE_GRADIENT


def is_growing(evidence: Evidence) -> bool:
    """Return whether the loss before the failure is finite, above the start and near its highest recent value."""
    end = failing_step(evidence)
    loss = loss_curve(evidence).before(end)
    now, late = loss.at(end - 1), loss.before(end - 1).since(end - 6).greatest
    return now is not None and loss_rise(loss) > 1.0 and (late is None or now > 0.8 * late)


def begins_abruptly(evidence: Evidence) -> bool:
    """Return whether loss or gradient jumps in one step far above all values before, after at least ten calm steps."""
    return abrupt_step(evidence, "loss") is not None or abrupt_step(evidence, "grad_norm") is not None


def abrupt_step(evidence: Evidence, name: str) -> int | None:
    """Return the step at which a quantity jumps to `JUMP` times its largest value before, None if there is none.

    There was no unusual or large update just before, so that the batch is the cause of the jump: if that update was not
    measured, one in proportion to the learning rate is assumed. Nothing is known of updates in logs of other tools.
    """
    if not any("update_ratio" in history.values for history in evidence.history):
        return None
    values = curve(evidence, name).before(failing_step(evidence)).finite
    ratios, norms = curve(evidence, "update_ratio"), curve(evidence, "weight_norm").finite
    for place in range(10, len(values)):
        step, before = int(values.step[place]), float(np.abs(values.value[:place]).max())
        if before > 0 and values.value[place] > JUMP * before:
            known, sizes = ratios.before(step).finite, norms.before(step).value[-2:]
            rise = _rise_of_rate(evidence, int(known.step[-1]) if len(known) else step - MANY_STEPS, step - 1)
            is_measured = len(known) > 1
            last, usual = (known.value[-1], np.median(known.value[:-1])) if is_measured else (1.0, 1.0)
            is_large = is_measured and rise * last > DISRUPTIVE_UPDATE
            is_ordinary = bool(rise * last <= UNUSUAL * usual) and not is_large
            has_grown = len(sizes) == 2 and sizes[1] > ORDINARY_GROWTH * sizes[0]
            return step if is_ordinary and not has_grown else None
    return None


def _rise_of_rate(evidence: Evidence, start: int, end: int) -> float:
    """Return the factor by which the learning rate is higher at one step than at another, at least 1."""
    rates = curve(evidence, "learning_rate")
    before, after = rates.at(start), rates.at(end)
    return max(after / before, 1.0) if before and after is not None and math.isfinite(after) else 1.0
