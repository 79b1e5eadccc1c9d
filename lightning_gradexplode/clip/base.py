"""Which threshold the coming step's gradients are clipped by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, StepRecord

Algorithm = Literal["norm", "value", "tensor"]


class ClipPolicy(ABC):
    """Base class of clipping rules: write `threshold`.

    Each optimizer has a copy of its own. The threshold is written to ``trainer.gradient_clip_val``, and Lightning
    does the clipping, at the same step.

    Example:
        >>> class HalfOfTheNorm(ClipPolicy):
        ...     def threshold(self, record):
        ...         return record.grad_norm / 2
    """

    algorithm: Algorithm = "norm"
    """Clip all gradients together by their L2 norm, each element by its value, or each tensor by `clip_tensors`."""

    @abstractmethod
    def threshold(self, record: StepRecord) -> float | None:
        """Give the clip value for the step whose gradients were just measured.

        Args:
            record: The step; its ``grad_norm`` may be NaN or infinite.

        Returns:
            A positive finite number, or None to clip nothing at this step.
        """

    def clip_tensors(self, parameters: ParameterSet, norms: FloatArray, scale: float, remember: bool) -> bool:
        """Clip gradients in place; called where `algorithm` is ``"tensor"``, for the trainer has no such clipping.

        Args:
            parameters: The optimizer's parameters.
            norms: L2 norm of each one's gradient, shape ``(parameters,)``, unscaled, of all shards together.
            scale: What the gradients in memory are multiplied by.
            remember: Whether this is a step, and not one more look of a line search at the same step.

        Returns:
            Whether any gradient was changed.
        """
        raise NotImplementedError(f"{type(self).__name__} has algorithm 'tensor' and no clip_tensors")

    def begin(self, optimizer: Optimizer) -> None:
        """Look at the optimizer whose gradients are clipped; called once, before the first step of a fit."""

    def state_dict(self) -> dict[str, Any]:
        """Give what has to survive a checkpoint, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class ConstantClip(ClipPolicy):
    """The same threshold at every step: the article's fourth remedy.

    Args:
        value: The threshold. Usual are 1.0 for the norm (Keras' ``clipnorm``) and 0.5 for the value (``clipvalue``).
        algorithm: ``"norm"`` scales all gradients together so that their L2 norm is at most the threshold; ``"value"``
            cuts each element to it.

    Raises:
        ValueError: The value is not positive and finite, or the algorithm is unknown.
        TypeError: The value is not a number.
    """

    def __init__(self, value: float = 1.0, algorithm: Algorithm = "norm") -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"clip got {value!r}; a clip value is a number")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"clip got {value!r}; a clip value is positive and finite")
        if algorithm not in ("norm", "value"):
            raise ValueError(f"algorithm got {algorithm!r}; it takes 'norm' or 'value'")
        self.value = float(value)
        self.algorithm = algorithm

    def threshold(self, record: StepRecord) -> float:
        """Give the constant."""
        return self.value
