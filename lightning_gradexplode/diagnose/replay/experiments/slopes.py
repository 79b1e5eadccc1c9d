"""The slope of the loss along the gradients of a run, which shows whether they are the gradients of that loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.experiments.variants import Variants
from lightning_gradexplode.measure.parameters import plain_name

CHANGES = (0.003, 0.001)
"""Changes of the loss that the gradients predict for the two steps, relative to the loss."""

SAME = 0.03
"""Largest difference of the two slopes, relative to what the gradients predict; more is rounding or curvature."""

EXPECTED = 0.9
"""Ratio to the predicted slope from which single parameters are not measured."""

FLAT = 0.1
"""Change of the loss, divided by the predicted one, below which the slope is measured over ten times the distance: the
rounding of the loss would be a large part of the change."""

MAX_LENGTHENINGS = 6
"""Number of times that the distance is multiplied by ten; a loss that is still flat then has no slope."""

MAX_PARAMETERS = 8
"""Number of parameters with the largest gradients whose slopes are measured one by one."""


def slope_ratios(
    variants: Variants,
    weights: Mapping[str, Tensor] | None,
    gradients: Mapping[str, Tensor],
    loss: float,
    norm: float,
) -> dict[str, Any]:
    """Measure the slope of the loss along the gradients, by central differences.

    Args:
        variants: Computes the step.
        weights: Weights of the step; None for the module's own.
        gradients: Gradients of the run by parameter name, maybe scaled by a loss scale.
        loss: The loss of the step.
        norm: Their L2 norm, unscaled.

    Returns:
        ``"slope_ratio"``, the slope divided by the one that the gradients predict, and ``"slope_ratios"``, pairs of a
        parameter and the same along its gradient alone. Without an entry if it cannot be measured.
    """
    norms = {name: float(torch.linalg.vector_norm(_wide(one.detach()))) for name, one in gradients.items()}
    total = math.hypot(*norms.values())
    if not (0 < norm < math.inf and 0 < abs(loss) < math.inf) or not _agree(total, norm, variants.loss_scale):
        return {}  # they were clipped or cleared since
    own = {plain_name(name): one.detach() for name, one in variants.module.named_parameters()}
    start = {name: own[name] if weights is None else weights.get(name, own[name]) for name in gradients}

    def ratio(names: list[str]) -> float | None:
        size = math.hypot(*(norms[name] for name in names))
        slope = size * norm / total  # of the loss along the normalized gradient of these parameters

        def loss_at(distance: float) -> float:
            moved = {name: _moved(start[name], gradients[name], distance / size) for name in names}
            return variants.run(weights={**(weights or {}), **moved}, backward=False).loss

        for stretch in (10.0**power for power in range(1 + MAX_LENGTHENINGS)):
            lengths = [stretch * change * abs(loss) / slope for change in CHANGES]
            changes = [(loss_at(one) - loss_at(-one)) / (2 * one * slope) * stretch for one in lengths]
            if not all(map(math.isfinite, changes)) or max(changes) - min(changes) > SAME:
                return None
            if abs(changes[-1]) >= FLAT:
                return changes[-1] / stretch
        return 0.0

    whole = ratio([*gradients])
    ratios: list[tuple[str, float]] = []
    try:
        for name in sorted(norms, key=lambda one: -norms[one])[:MAX_PARAMETERS]:
            if whole is None or whole >= EXPECTED or not norms[name]:
                break
            one = ratio([name])
            ratios += [] if one is None else [(name, one)]
    except ReplayStopped:
        pass  # the time limit is reached
    return {"slope_ratio": whole, "slope_ratios": tuple(ratios)}


def _wide(gradient: Tensor) -> Tensor:
    return gradient if gradient.is_complex() else gradient.float()


def _moved(weight: Tensor, gradient: Tensor, factor: float) -> Tensor:
    return (weight + factor * gradient.to(weight.device)).to(weight.dtype)


def _agree(held: float, norm: float, scale: float) -> bool:
    return any(math.isclose(held, one * norm, rel_tol=0.01) for one in (1.0, scale))
