"""By how much to lower a learning rate that is too high."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import curve, history_at_fault, loss_curve
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import numbers_of
from lightning_gradexplode.diagnose.trends import Trend, initial_weight_norm
from lightning_gradexplode.records import Evidence

FIRST_UPDATE = 0.01
"""Ratio of the first update to the weights that most networks bear."""

SAME_PARABOLA = 4.0
"""So many times Polyak's step size, which is half the distance to the minimum of a parabola, belong to the same one."""

_UNIT_STEPS = ("Adam", "AdamW", "Adamax", "Adagrad", "Lion")
"""Optimizers whose first update moves each weight by the learning rate."""


def rate_remedies(evidence: Evidence, course: Trend) -> tuple[str, ...]:
    """Return the remedies for a learning rate that is too high: a lower one, a warm-up, clipping."""
    return (
        *remedies.lower_rate(evidence, rate_factor(evidence, course)),
        *remedies.warm_up(evidence),
        *remedies.clip(evidence),
    )


def rate_factor(evidence: Evidence, course: Trend) -> float:
    """Return by how much to lower the rate: by the line search, else by the size of the first update."""
    borne, search = _borne_factor(evidence), line_search(evidence)
    is_plain = {one.kind for one in evidence.run.optimizers} == {"SGD"}
    polyak = _polyak_factor(evidence) if is_plain else None
    if polyak is not None and search is not None and search.parabola_minimum is not None:
        half = 0.5 * search.parabola_minimum
        # Far out a network with saturated units is a parabola too, and another one.
        if half <= SAME_PARABOLA * polyak:
            return min(0.3, half)
    if polyak is not None and polyak > borne:
        return min(0.3, math.sqrt(polyak * borne))
    if search is None or not search.overshoots:
        largest = max(course.update_ratio, first_update_ratio(evidence) or 0.0)
        return min(0.01, max(borne, 1e-4)) if largest > 1 else min(0.1, max(borne, 0.01))
    if search.best_factor > 0:
        factor = min(0.3, search.best_factor)
        return math.sqrt(factor * borne) if borne < factor else factor
    return min(0.003, borne)  # not even a hundredth of the step helps


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


def _borne_factor(evidence: Evidence) -> float:
    """Return the factor of the rate with which the first update would have been of a size that most networks bear.

    The step that was measured began with weights that others had changed; the first update did not. Momentum makes
    later ones up to 1 / (1 - momentum) times as large, of which the root is taken.
    """
    first = first_update_ratio(evidence) or 0.0
    return max(FIRST_UPDATE * math.sqrt(1 - _momentum(evidence)) / first, 1e-8) if first > 0 else 1.0


def _momentum(evidence: Evidence) -> float:
    """Return the largest momentum of the optimizers, 0 without one."""
    momenta = [group.get("momentum", 0.0) for one in evidence.run.optimizers for group in one.groups]
    return max((float(one) for one in momenta if isinstance(one, (int, float)) and 0 <= one < 1), default=0.0)


def first_update_ratio(evidence: Evidence) -> float | None:
    """Return the norm of the run's first update over that of the weights before it.

    A run that is logged seldom has not measured it. Then it is computed by the optimizer's formula; for an optimizer
    whose formula is not known, by the growth of the weights' norm, to which it is nearly orthogonal. If neither is
    known it is the first ratio that was measured, None if none was.
    """
    ratios, start = curve(evidence, "update_ratio"), evidence.run.first_step
    measured, weights, place = ratios.at(start), initial_weight_norm(evidence), history_at_fault(evidence)
    if measured is not None or place is None or place >= len(evidence.run.optimizers) or not weights:
        return measured if measured is not None else ratios.first
    update = _first_update_by_formula(evidence, place, weights)
    if update is not None:
        return update / weights
    after = curve(evidence, "weight_norm").at(start)
    return math.sqrt((after / weights) ** 2 - 1) if after is not None and after > weights else ratios.first


def _first_update_by_formula(evidence: Evidence, place: int, weights: float) -> float | None:
    """Return the norm of the first update of an optimizer of torch without state, None if it is not known.

    Args:
        evidence: The evidence.
        place: Index of the optimizer.
        weights: L2 norm of its weights.
    """
    one, start = evidence.run.optimizers[place], evidence.run.first_step
    rate = curve(evidence, "learning_rate").at(start)
    numbers = numbers_of(one.groups[0]) if one.groups else {}
    if rate is None or one.has_state:
        return None
    if one.kind == "SGD":
        norms = [curve(evidence, name).at(start) for name in ("grad_norm", "grad_norm_clipped")]
        norm = min((value for value in norms if value is not None), default=None)
        return None if norm is None else rate * (norm + numbers.get("weight_decay", 0.0) * weights)
    count = sum(math.prod(parameter.shape) for parameter in evidence.run.parameters if parameter.optimizer == place)
    # The first running square of RMSprop is that share of the first square.
    share = 1 - numbers.get("alpha", 0.99) if one.kind == "RMSprop" else 1.0
    is_known = one.kind in (*_UNIT_STEPS, "RMSprop") and count > 0 and share > 0
    return rate * math.sqrt(count / share) if is_known else None
