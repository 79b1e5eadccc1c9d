"""Estimates of an optimizer's coming step: how far it moves the weights, and how much it reduces the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import LBFGS, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.records import StepRecord

_BY_LEARNING_RATE = (Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop)
"""Optimizers whose first steps move each weight by about the learning rate."""

_ADAPTIVE = 2.0
"""Adaptive optimizers move all weights by about the learning rate, which does no harm in healthy runs with small
weights. Their movement is divided by this, so that it may be twice as large."""

_MEAN_OF_NORMAL = 0.8
"""Mean absolute value of normal numbers, in standard deviations (the root of 2 / pi)."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Estimates of a step at its full learning rate, before it is applied.

    Args:
        rate: The largest learning rate of the parameter groups.
        move: Norm of the weights' change over the norm of the weights; 0.0 where it is not known.
        decrease: Decrease of the loss by the step if the loss were linear; None where it is not known.
        memory: Number of steps over which momentum adds up gradients, ``1 / (1 - momentum)``.
    """

    rate: float
    move: float
    decrease: float | None = None
    memory: float = 1.0


def planned_step(
    optimizer: Optimizer, record: StepRecord, weights: float, remembered: float = 0.0
) -> PlannedStep | None:
    """Return estimates of the coming step, None for an optimizer without a step size that can be changed.

    With momentum ``m``, gradients of several steps add up to between 1 and ``1 / (1 - m)`` times one gradient. The
    upper bound to the power of 3/5 is used, or the norm of the momentum buffers if that is larger.

    Args:
        optimizer: The optimizer.
        record: The measurements of the gradients.
        weights: L2 norm of all weights.
        remembered: Norm of the optimizer's momentum buffers.
    """
    groups, norm = optimizer.param_groups, record.grad_norm
    rate = max(map(_rate, groups), default=0.0)
    if norm is None or not rate > 0 or isinstance(optimizer, LBFGS):
        return None
    memory = max(1 / (1 - momentum(group)) for group in groups)
    move, decrease = 0.0, None  # of other optimizers it is not known how far they move the weights
    if isinstance(optimizer, _BY_LEARNING_RATE):
        move, decrease = _by_learning_rate(groups, record)
        share = _share_of_first_steps(optimizer) if isinstance(optimizer, Adagrad) else 1.0
        move, decrease = share * move, share * decrease
    elif isinstance(optimizer, (SGD, RAdam)):
        move, decrease = _by_gradient(groups, record, remembered)
    if not math.isfinite(norm) or not weights > 0:
        move, decrease = 0.0, None
    share = move / weights if weights > 0 else 0.0
    return PlannedStep(rate, share if math.isfinite(share) else 1e300, decrease, memory)


def _rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group; 0.0 if an optimizer without one, or with None, computes its own."""
    return float(group.get("lr") or 0.0)


def momentum(group: Mapping[str, Any]) -> float:
    """Return the momentum of gradient descent, 0.0 for other optimizers."""
    return min(float(group.get("momentum") or 0.0), 0.9999)


def _by_learning_rate(groups: Sequence[Mapping[str, Any]], record: StepRecord) -> tuple[float, float]:
    """Return movement and decrease of a step that moves each weight by the learning rate, against its gradient's sign.

    The decrease is the learning rate times the sum of all absolute gradients, which is estimated from their norms.
    """
    sizes = [float(one.numel()) for group in groups for one in group["params"]]
    rates = [_rate(group) for group in groups for _ in group["params"]]
    norms = record.per_parameter.get("grad_norm")
    move = math.hypot(*(rate * math.sqrt(size) for rate, size in zip(rates, sizes, strict=True))) / _ADAPTIVE
    if norms is None or len(norms) != len(sizes):
        return move, max(rates) * math.sqrt(sum(sizes)) * _MEAN_OF_NORMAL * (record.grad_norm or 0.0)
    return move, float(np.sum(np.array(rates) * np.sqrt(sizes) * norms)) * _MEAN_OF_NORMAL


def _share_of_first_steps(optimizer: Adagrad) -> float:
    """Return by how much shorter steps of Adagrad are than its first ones: it divides by the root of a sum of squares.

    For gradients of the same size that sum grows in proportion to the steps (Duchi, Hazan, Singer 2011, section 1.1).
    """
    states = map(optimizer.state.get, held_by(optimizer))
    steps = next((one["step"] for one in states if one), 0)
    is_known = not isinstance(steps, torch.Tensor) or steps.device.type == "cpu"
    return (1.0 + float(steps)) ** -0.5 if is_known else 1.0


def _by_gradient(groups: Sequence[Mapping[str, Any]], record: StepRecord, remembered: float) -> tuple[float, float]:
    """Return movement and decrease of a step along the gradient."""
    norm = record.grad_norm or 0.0
    of_buffers = remembered / norm if norm > 0 else 0.0
    rates = [
        _rate(group) * (max((1 - momentum(group)) ** -0.6, of_buffers) if momentum(group) else 1.0) for group in groups
    ]
    sizes, norms = [len(group["params"]) for group in groups], record.per_parameter.get("grad_norm")
    if len(rates) == 1 or norms is None or sum(sizes) != len(norms):
        return max(rates) * norm, max(rates) * norm**2 if norm < 1e150 else math.inf
    each = np.repeat(rates, sizes)
    return float(np.linalg.norm(each * norms)), float(np.sum(each * np.minimum(norms, 1e150) ** 2))
