"""The trends of a run before an incident: what has grown, and whether the last update overshoots."""

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
"""Rise of the loss above its start, in units of its size or noise, from which it has left the region of the start."""

DIVERGED_GRADIENT = 30.0
"""Growth of the gradient norm over its usual level from which it has left the calm range."""

DIVERGED_WEIGHTS = 2.0
"""Growth of the weights' norm over that of the start from which updates have changed the scale of the weights."""


HUGE_LOSS, HUGE_GRADIENT = 1e6, 1e4
"""Loss and gradient norm before any update from which no learning rate is at fault."""

SHORT = 0.5
"""Reach of the updates below which none overshoots (`largest_reach`)."""

JUMP = 30.0
"""So many times the largest value before, a loss or a gradient has jumped."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a run went up to the step at which it failed, or up to now if nothing has become non-finite.

    Args:
        steps: Number of steps with a finite loss or gradient.
        loss_rise: Largest rise of the loss above its start, in units of the size or the noise of the first losses.
        gradient_growth: Largest gradient norm near the incident over the usual one before it.
        weight_growth: Largest norm of the weights over that of the start.
        update_ratio: Largest ratio of an update to the weights.
    """

    steps: int = 0
    loss_rise: float = 0.0
    gradient_growth: float = 1.0
    weight_growth: float = 1.0
    update_ratio: float = 0.0

    @property
    def has_diverged(self) -> bool:
        """Whether loss, gradients or weights had left the region of the start."""
        return (
            self.loss_rise >= DIVERGED_LOSS
            or self.gradient_growth >= DIVERGED_GRADIENT
            or self.weight_growth >= DIVERGED_WEIGHTS
        )


def trend(evidence: Evidence) -> Trend:
    """Return how loss, gradients and weights went up to the failure."""
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

    The start is the median of the first losses: of five, of a quarter of fewer than twenty, and of none that belongs
    to the incident. The unit is the size of that median, or twice the median change from step to step over the first
    half, whichever is larger.

    Args:
        loss: The loss.
        incident: The step at which the incident began; the rise is looked for from a little before on. None to look
            at the last five steps.
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
    """Return the largest norm of the last five steps over the median before; with fewer than four, over the first."""
    values = norm.finite.value
    values = values[values > 0]
    if len(values) < 2:
        return 1.0
    calm = norm.finite.before(min(step, int(norm.finite.step[-1]))).value
    calm = calm[calm > 0]
    # The steps before the first critical finding can be growing already: the level is that of their first half.
    level = float(np.median(calm[: max(1, len(calm) // 2)])) if len(calm) else float(values[0])
    return float(values[-5:].max()) / level


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


@dataclass(frozen=True, slots=True)
class LineSearch:
    """The loss of one batch along the step's update.

    Args:
        start: The loss without the update.
        end: The loss with the whole update, infinite if it is not finite.
        best_factor: The factor with the least loss, 0 if no factor lowers it.
        least: The least loss.
        falls_at_first: Whether the smallest factor lowers the loss: whether the update points downhill.
        slope: Slope of the loss at the start, per whole update, of the parabola through the two smallest factors; NaN
            where it is not known.
        parabola_minimum: The factor with the least loss of the parabola through all points, None if they are on none
            that opens upward.
    """

    start: float
    end: float
    best_factor: float
    least: float
    falls_at_first: bool
    slope: float = math.nan
    parabola_minimum: float | None = None

    @property
    def climbs(self) -> bool:
        """Whether the loss rises from the start on, which no step along its own gradient does, however long it is."""
        return self.slope > 0.5 * abs(self.start)

    @property
    def overshoots(self) -> bool:
        """Whether the update raises the loss by more than a tenth, or goes far past the least loss on its way."""
        rises = self.end > self.start + 0.1 * abs(self.start)
        passes = 0 < self.best_factor <= 0.3 and self.end - self.least > 0.5 * (self.start - self.least)
        return rises or passes


def line_search(evidence: Evidence) -> LineSearch | None:
    """Return the measured losses along the update, None if there are none to judge."""
    experiments = evidence.experiments
    pairs = sorted(experiments.line_search) if experiments is not None else []
    start = next((loss for factor, loss in pairs if factor == 0), math.nan)
    along = [(factor, loss if math.isfinite(loss) else math.inf) for factor, loss in pairs if factor > 0]
    if not math.isfinite(start) or not along:
        return None
    best = min(along, key=lambda pair: pair[1])
    lowers = best[1] < start
    return LineSearch(
        start=start,
        end=along[-1][1],
        best_factor=best[0] if lowers else 0.0,
        least=min(best[1], start),
        falls_at_first=along[0][1] < start,
        slope=_slope(start, along),
        parabola_minimum=_parabola_minimum(start, along),
    )


def _slope(start: float, along: list[tuple[float, float]]) -> float:
    """Return the slope at zero of the parabola through the start and the two smallest factors."""
    if len(along) < 2 or not math.isfinite(along[1][1]):
        return math.nan
    (near, near_loss), (far, far_loss) = along[:2]
    rises = (near_loss - start) / near, (far_loss - start) / far
    return (rises[0] * far - rises[1] * near) / (far - near)


def largest_reach(evidence: Evidence) -> float | None:
    """Return by how much of the loss, at most, one update can have changed it to first order, while the loss rose.

    That is the product of the norms of gradient and update over the loss. A step that goes past the least loss of a
    parabola by so much that the loss rises has a product of four times the loss or more.

    Returns:
        The largest over the steps whose loss was twice that of the start and more; None with fewer than five of them
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
    reaches = []
    for step in risen.tolist():
        known = [one.at(step) for one in (loss, norm, ratio)] + [weight.before(step + 1).last]
        if all(one is not None for one in known):
            now, gradient, share, weights = (float(one or 0.0) for one in known)
            reaches.append(gradient * share * weights / now)
    return max(reaches) if len(reaches) >= 5 else None


def _parabola_minimum(start: float, along: list[tuple[float, float]]) -> float | None:
    """Return where the parabola through the start and the two smallest factors is least, None if others are off it."""
    slope = _slope(start, along)
    if len(along) < 3 or not math.isfinite(slope) or slope >= 0:
        return None
    curvature = (along[1][1] - start - slope * along[1][0]) / along[1][0] ** 2
    expected = (start + slope * factor + curvature * factor**2 for factor, _ in along[2:])
    is_parabola = all(math.isclose(loss, one, rel_tol=0.1) for (_, loss), one in zip(along[2:], expected, strict=True))
    return -slope / (2 * curvature) if is_parabola and curvature > 0 else None


def starts_huge(evidence: Evidence) -> bool:
    """Return whether loss and gradient are huge at the run's first step, before any update."""
    loss, norm = loss_curve(evidence).first, curve(evidence, "grad_norm").first
    if evidence.run.is_resumed or loss is None or norm is None:
        return False
    return abs(loss) > HUGE_LOSS and norm > HUGE_GRADIENT


def is_growing(evidence: Evidence) -> bool:
    """Return whether the loss, as the incident begins, is finite, above the start and about its highest of late."""
    end = failing_step(evidence)
    loss = loss_curve(evidence).before(end)
    now, late = loss.at(end - 1), loss.before(end - 1).since(end - 6).greatest
    return now is not None and loss_rise(loss) > 1.0 and (late is None or now > 0.8 * late)


def begins_abruptly(evidence: Evidence) -> bool:
    """Return whether loss or gradient jumps in one step far above all that was, after ten calm steps and more."""
    return abrupt_step(evidence, "loss") is not None or abrupt_step(evidence, "grad_norm") is not None


def abrupt_step(evidence: Evidence, name: str) -> int | None:
    """Return the step at which a quantity jumps to `JUMP` times its largest value before, None if there is none.

    The weights that the step began with were changed by ordinary updates only, so that the batch has made the jump.
    """
    values = curve(evidence, name).before(failing_step(evidence)).finite
    ratios = curve(evidence, "update_ratio")
    for place in range(10, len(values)):
        step, before = int(values.step[place]), float(np.abs(values.value[:place]).max())
        if before > 0 and values.value[place] > JUMP * before:
            known = ratios.before(step).finite.value
            return step if len(known) < 2 or known[-1] <= 3 * np.median(known[:-1]) else None
    return None
