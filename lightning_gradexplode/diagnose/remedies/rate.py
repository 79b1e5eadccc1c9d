"""The factor by which to lower a learning rate that is too high."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.curves import curve, loss_curve
from lightning_gradexplode.diagnose.first_update import first_update_ratio
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.diagnose.remedies import common
from lightning_gradexplode.diagnose.trends import Trend
from lightning_gradexplode.records import Evidence

FIRST_UPDATE = 0.01
"""Ratio of the first update to the weights with which most networks are stable."""

MARGIN = 0.5
"""Factor below the estimated rate of gradient descent, since a rate at the edge of stability fails later."""

SAME_PARABOLA = 4.0
"""Multiple of Polyak's step size up to which half the distance to the measured minimum agrees with it."""


def rate_remedies(evidence: Evidence, course: Trend) -> tuple[str, ...]:
    """Return the remedies for a learning rate that is too high: a lower one, a warm-up, clipping."""
    return (
        *common.lower_rate(evidence, rate_factor(evidence, course)),
        *common.warm_up(evidence),
        *common.clip(evidence),
    )


def rate_factor(evidence: Evidence, course: Trend) -> float:
    """Return the factor by which to lower the rate, from the line search or else the size of the first update.

    Without a measured length of the step that lowers the loss, the new rate is at most the highest usual one.
    """
    search, rate, usual = line_search(evidence), common.learning_rate(evidence), usual_rate(evidence.run)
    factor = _measured_factor(evidence, course)
    if not (rate is None or usual is None or rate <= usual[1] or (search is not None and search.best_factor > 0)):
        factor = min(factor, usual[1] / rate)
    return MARGIN * factor if {one.kind for one in evidence.run.optimizers} == {"SGD"} else factor


def _measured_factor(evidence: Evidence, course: Trend) -> float:
    stable, search = _stable_factor(evidence), line_search(evidence)
    is_plain = {one.kind for one in evidence.run.optimizers} == {"SGD"}
    polyak = _polyak_factor(evidence) if is_plain else None
    if polyak is not None and search is not None and search.parabola_minimum is not None:
        half = 0.5 * search.parabola_minimum
        # Far from the minimum, the loss of a network with saturated units is on another parabola.
        if half <= SAME_PARABOLA * polyak:
            return min(0.3, half)
    if polyak is not None and polyak > stable:
        return min(0.3 if search is not None else 0.1, math.sqrt(polyak * stable))
    if search is None or not search.overshoots:
        largest = max(course.update_ratio, first_update_ratio(evidence) or 0.0)
        return min(0.01, max(stable, 1e-4)) if largest > 1 else min(0.1, max(stable, 0.01))
    if search.best_factor > 0:
        factor = min(0.3, search.best_factor)
        return math.sqrt(factor * stable) if stable < factor else factor
    return min(0.003, stable)  # not even a hundredth of the step helps


def _polyak_factor(evidence: Evidence) -> float | None:
    """Return the factor of the rate that Polyak's step size would have been at the first step, None if not known.

    That is the loss over the square of the gradient's norm, for a loss whose minimum is zero (Polyak, 1987, section
    5.3); of a parabola it is half the distance to the minimum. Momentum multiplies it by 1 / (1 - momentum).
    """
    start = evidence.run.first_step
    loss, norm, rate = (
        one.at(start) for one in (loss_curve(evidence), curve(evidence, "grad_norm"), curve(evidence, "learning_rate"))
    )
    if loss is None or norm is None or rate is None or not (loss > 0 and norm > 0 and rate > 0):
        return None
    return (1 - _momentum(evidence)) * (loss / norm) / (norm * rate)


def _stable_factor(evidence: Evidence) -> float:
    """Return the factor of the rate with which the first update would have a size at which most networks are stable.

    Unlike later steps, the first update starts from weights that no update has changed. Momentum makes later updates up
    to 1 / (1 - momentum) times as large; the square root of that is used.
    """
    first = first_update_ratio(evidence) or 0.0
    return max(FIRST_UPDATE * math.sqrt(1 - _momentum(evidence)) / first, 1e-8) if first > 0 else 1.0


def _momentum(evidence: Evidence) -> float:
    """Return the largest momentum of the optimizers, 0 without one."""
    momenta = [group.get("momentum", 0.0) for one in evidence.run.optimizers for group in one.groups]
    return max((float(one) for one in momenta if isinstance(one, (int, float)) and 0 <= one < 1), default=0.0)
