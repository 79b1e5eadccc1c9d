"""Clipping of each tensor separately."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode import checks
from lightning_gradexplode.clip.apply import scale_gradients
from lightning_gradexplode.clip.base import ClipPolicy
from lightning_gradexplode.distributed.shard_layout import is_sharded_within_rows, local_part
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import ParameterSet, matches
from lightning_gradexplode.records import FloatArray, StepRecord
from lightning_gradexplode.records.state import Stateful


class _TensorClip(ClipPolicy):
    """Base class of the policies that clip each tensor, without a common threshold."""

    algorithm = "tensor"

    def threshold(self, record: StepRecord) -> None:
        """Return None, since there is no threshold for all tensors."""


class AdaptiveGradientClip(_TensorClip):
    """Clip the gradient of each unit relative to the norm of the unit's weights.

    This is AGC (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", section 4).
    A unit is a row of a matrix, a filter of a convolution, or a whole vector. A unit's gradient is
    scaled so that its norm is at most `share` times the norm of its weights, or `share` times `least` if that is
    larger. The paper does not clip the last layer; add it to `exclude` to do the same.

    Args:
        share: Largest norm of the gradient relative to the norm of the weights.
        least: Lower bound of the norm of the weights, so that weights that start at zero can be learned.
        exclude: Name patterns (``fnmatch``) of parameters that are not clipped.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, share: float = 0.01, least: float = 1e-3, exclude: Sequence[str] = ()) -> None:
        self.share = checks.number("share", share)
        self.least = checks.number("least", least)
        self.exclude = checks.patterns("exclude", exclude)

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip each unit of each tensor."""
        bound: list[Tensor] = []
        with torch.no_grad():
            weights = self._weights_of_vectors(parameters)
            for place, (name, parameter) in enumerate(zip(parameters.names, parameters.tensors, strict=True)):
                if parameter.grad is None or matches(name, self.exclude):
                    continue
                gradient, weight = _local(parameter.grad), _local(parameter)
                if parameter.ndim > 1 and gradient.layout is torch.strided:
                    bound.append(self._clip_units(gradient, weight, scale))
                elif norms[place] > (limit := self.share * max(weights[place], self.least)):
                    scale_gradients([gradient], [limit / norms[place]])
                    bound.append(torch.ones((), dtype=torch.bool, device=gradient.device))
        return bool(torch.stack([one.to("cpu") for one in bound]).any()) if bound else False

    @staticmethod
    def _weights_of_vectors(parameters: ParameterSet) -> FloatArray:
        """Return the norms of the parameters that are one unit each, of all shards together."""
        single = [
            one if one.ndim <= 1 or (one.grad is not None and one.grad.is_sparse) else None
            for one in parameters.tensors
        ]
        return parameters.shards.norms(measure_norms(single)).each

    def _clip_units(self, gradient: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Clip the rows of one tensor, and return whether any was clipped."""
        rest = tuple(range(1, gradient.ndim))
        sizes = _row_norms(gradient, rest) / scale
        limits = self.share * _row_norms(weight, rest).clamp(min=self.least)
        over = sizes > limits
        gradient.mul_(torch.where(over, limits / sizes, 1.0))
        return over.any()


class AdaptiveTensorClip(Stateful, _TensorClip):
    """Clip the gradient of each tensor by its own moving average.

    This is AdaGC (Wang et al. 2025, "AdaGC: Improving Training Stability for Large Language Model Pretraining").
    For the first `warmup` steps the norm of all gradients is clipped to `first`, and the average of each tensor is
    initialized to its smallest norm. Then each tensor is clipped to `factor` times its average, which is updated with
    the clipped norm. Zero and non-finite norms are ignored, so that a layer that is frozen at first can learn later.

    Args:
        factor: Threshold of a tensor divided by its average norm.
        decay: Decay of the moving averages per step.
        warmup: Number of steps before the averages are used.
        first: Clip value of the norm of all gradients during the warm-up.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range.
    """

    def __init__(self, factor: float = 1.05, decay: float = 0.98, warmup: int = 100, first: float = 1.0) -> None:
        self.factor = checks.number("factor", factor)
        self.decay = checks.number("decay", decay, 1.0)
        self.warmup = checks.count("warmup", warmup)
        self.first = checks.number("first", first)
        self._steps = 0
        self._averages: FloatArray = np.zeros(0)

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip each tensor."""
        averages = self._averages if len(self._averages) == len(norms) else np.full(len(norms), np.nan)
        usable = np.isfinite(norms) & (norms > 0)
        factors = self._factors(norms, averages, usable)
        gradients = parameters.gradients
        places = [int(place) for place in np.flatnonzero(factors < 1) if gradients[place] is not None]
        scale_gradients([_local(gradients[place]) for place in places], [float(factors[place]) for place in places])
        if remember:
            clipped = norms * factors
            if self._steps < self.warmup:
                latest = np.fmin(averages, clipped)
            else:
                latest = np.where(np.isnan(averages), clipped, self.decay * averages + (1 - self.decay) * clipped)
            self._averages = np.where(usable, latest, averages)
            self._steps += 1
        return bool(places)

    def _factors(self, norms: FloatArray, averages: FloatArray, usable: Any) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if self._steps < self.warmup:
                total = float(np.linalg.norm(norms))
                return np.full(len(norms), min(1.0, self.first / total) if 0 < total < math.inf else 1.0)
            factors = np.minimum(1.0, self.factor * averages / norms)
        return np.where(usable & np.isfinite(averages), factors, 1.0)


def _row_norms(tensor: Tensor, rest: tuple[int, ...]) -> Tensor:
    kind = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=rest, keepdim=True, dtype=kind)
    return norms


def _local(tensor: Any) -> Tensor:
    """Return the part of a sharded tensor that lies on this process, sharing its memory.

    Raises:
        ValueError: A tensor is sharded within its rows, so that no process has a whole unit.
    """
    if is_sharded_within_rows(tensor):
        raise ValueError("a parameter is sharded within its rows; it cannot be clipped unit by unit")
    return local_part(tensor)
