"""Other initializations of weights, tried with the first batch of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.experiments.variants import Variants
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import StartTrial

Start = Literal["orthogonal", "small"]

GAIN, SMALL = 0.9, 0.01
"""Singular values of an orthogonal initialization; standard deviation of a small one."""


def try_starts(
    variants: Variants, weights: Mapping[str, Tensor] | None, names: Sequence[str]
) -> tuple[StartTrial, ...]:
    """Compute the first step of a run with other initial values of some matrices, one at a time, within the budget.

    Args:
        variants: Computes the step.
        weights: Weights before its update; None for the module's own.
        names: Names of the matrices.
    """
    own = {plain_name(name): one for name, one in variants.module.named_parameters()}
    found: list[StartTrial] = []
    starts: tuple[Start, ...] = ("orthogonal", "small")
    for name, start in [(one, start) for one in names if one in own for start in starts]:
        try:
            result = variants.run(weights={**(weights or {}), name: _initialized(own[name], start)})
        except ReplayStopped:
            break
        norm = result.grad_norm if result.is_finite and result.grad_norm is not None else math.inf
        found.append(StartTrial(name, start, result.loss, norm))
    return tuple(found)


def _initialized(parameter: Tensor, start: Start) -> Tensor:
    """Return a new initialization of a matrix, without drawing from the generators of the run."""
    numbers = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), device="cpu")
    if start == "small":
        made = SMALL * numbers
    else:
        tall = numbers if numbers.shape[0] >= numbers.shape[1] else numbers.T
        basis = GAIN * torch.linalg.qr(tall).Q
        made = basis if numbers.shape[0] >= numbers.shape[1] else basis.T
    return made.to(parameter.device, parameter.dtype)
