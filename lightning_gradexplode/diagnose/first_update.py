"""The size and the effect of the first update of a run."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, history_at_fault, loss_curve
from lightning_gradexplode.diagnose.optimizers import UNIT_STEPS, numbers_of, uses_adaptive_optimizer
from lightning_gradexplode.diagnose.trends import JUMP, initial_weight_norm, starts_huge
from lightning_gradexplode.records import Evidence

FAILS_WITHIN = 50
"""Number of steps after the start within which a run fails because of first updates that are far too large."""


def jump_by_first_update(evidence: Evidence) -> str | None:
    """Return the effect of a first update as large as the weights, if the loss jumped or was not finite after it.

    With an optimizer that normalizes its steps, the learning rate alone is the cause of such an update, whatever the
    gradients are. Failures and measurements after it are consequences.

    Returns:
        A sentence, None without such an update.
    """
    start, first, failed = evidence.run.first_step, loss_curve(evidence).first, first_nonfinite(evidence)
    ratio, after = first_update_ratio(evidence), loss_curve(evidence).at(start + 1)
    if not uses_adaptive_optimizer(evidence.run) or evidence.run.is_resumed or starts_huge(evidence):
        return None
    has_failed = failed is not None and failed.step == start + 1
    if first is None or ratio is None or ratio < 1 or not (has_failed or (after or 0.0) > JUMP * abs(first)):
        return None
    end = "the next one is not finite" if has_failed or after is None else f"the next one is {after:.4g}"
    return f"The first update changed the weights by {ratio:.3g} times their norm; the loss was {first:.4g}, and {end}."


def update_before_failure(evidence: Evidence) -> float | None:
    """Return the norm of the last update before something was not finite, divided by that of the weights before it.

    Returns:
        None if it is not known.
    """
    failed = first_nonfinite(evidence)
    if failed is None or failed.step <= evidence.run.first_step:
        return None
    ratio = curve(evidence, "update_ratio").at(failed.step - 1)
    is_first = failed.step == evidence.run.first_step + 1
    return first_update_ratio(evidence) if ratio is None and is_first else ratio


def first_update_ratio(evidence: Evidence) -> float | None:
    """Return the norm of the run's first update divided by that of the weights before it.

    If it was not measured, it is computed by the optimizer's formula; for an optimizer whose formula is not known, from
    the growth of the weights' norm, since an update is nearly orthogonal to the weights. If neither is known, the first
    measured ratio is returned, None without one.
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
    # The first running average of RMSprop is this share of the squared gradient.
    share = 1 - numbers.get("alpha", 0.99) if one.kind == "RMSprop" else 1.0
    is_known = one.kind in (*UNIT_STEPS, "RMSprop") and count > 0 and share > 0
    return rate * math.sqrt(count / share) if is_known else None
