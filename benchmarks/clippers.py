"""Clipping rules of other publications as callbacks, with their published defaults."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class Clipping(Callback):
    """Base class: clips by the norm right before the optimizer's step, by torch's own function. Define `limit`."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compute the limit, and clip to it."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:  # a batch that was left out
            return
        gradients = [_values(p.grad) for p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients)
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        limit = self.limit(norm, id(getattr(optimizer, "optimizer", optimizer)))
        if limit is not None and any(p.grad is not None and p.grad.is_sparse for p in parameters):
            for parameter in parameters:  # torch's own function raises
                parameter.grad = None if parameter.grad is None else parameter.grad * min(1.0, limit / (norm + 1e-6))
        elif limit is not None:
            torch.nn.utils.clip_grad_norm_(parameters, limit)

    def limit(self, norm: float, optimizer: int) -> float | None:
        """Return the largest norm at this step; None for no clipping."""
        raise NotImplementedError


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


class Constant(Clipping):
    """A norm of 1.0, the most common choice."""

    def limit(self, norm: float, optimizer: int) -> float:
        """Return the constant."""
        return 1.0


class AutoClip(Clipping):
    """AutoClip (Seetharaman et al. 2020): the tenth percentile of all norms so far, this step's one included."""

    def __init__(self) -> None:
        self._norms: dict[int, list[float]] = defaultdict(list)

    def limit(self, norm: float, optimizer: int) -> float:
        """Return the percentile; after one NaN it is NaN for the rest of the run, as in the published rule."""
        self._norms[optimizer].append(norm)
        with np.errstate(all="ignore"):
            return float(np.percentile(self._norms[optimizer], 10))


class _Averages:
    """ZClip's state for one optimizer."""

    def __init__(self) -> None:
        self.warmup: list[float] = []
        self.mean = 0.0
        self.variance = 0.0


class ZClip(Clipping):
    """ZClip (Kumar et al. 2025) with its published defaults.

    25 steps of warm-up, moving averages of mean and variance with 0.97, and above a score of 2.5 the norm is clipped to
    mean + 2.5 * deviation / (score / 2.5), which is also what enters the averages. Its ``max_grad_norm`` of 1.0 is
    laid on top of it at every step.
    """

    most: float | None = 1.0

    def __init__(self) -> None:
        self._averages: dict[int, _Averages] = defaultdict(_Averages)

    def limit(self, norm: float, optimizer: int) -> float | None:
        """Return the limit, and update the averages."""
        one = self._averages[optimizer]
        with np.errstate(all="ignore"):
            if len(one.warmup) < 25:
                one.warmup.append(norm)
                one.mean, one.variance = float(np.mean(one.warmup)), float(np.var(one.warmup))
                return self.most
            deviation = float(np.sqrt(np.float64(one.variance)))
            score = float(np.float64(norm - one.mean) / (deviation + 1e-6))
            clipped = one.mean + 2.5 * deviation / (score / 2.5) if score > 2.5 else None
            taken = norm if clipped is None else clipped
            one.mean = 0.97 * one.mean + 0.03 * taken
            one.variance = float(0.97 * one.variance + 0.03 * np.square(np.float64(taken - one.mean)))
        limits: list[Any] = [limit for limit in (clipped, self.most) if limit is not None]
        return min(limits, default=None)


class ZClipAlone(ZClip):
    """ZClip's adaptive rule without the additional constant limit of its defaults."""

    most = None
