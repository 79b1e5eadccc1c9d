"""The gradients that the optimizers of a replayed step receive."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite


class GradientNorm:
    """The norm of gradients by parameter; a parameter that is measured again counts once, with its last gradient.

    Attributes:
        nonfinite: The gradients that are not finite, by the name of the parameter.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}

    def add(self, named: Iterable[tuple[str, nn.Parameter]], scale: float) -> None:
        """Measure the gradients that parameters hold, divided by the scale of the loss."""
        for name, parameter in named:
            gradient = parameter.grad
            if gradient is None:
                continue
            values = gradient.coalesce()._values() if gradient.is_sparse else gradient
            if not all_finite(values):
                self.nonfinite[name] = gradient
            wide = torch.float64 if values.device.type == "cpu" and values.is_floating_point() else None
            self._norms[name] = float(torch.linalg.vector_norm(values, dtype=wide).abs()) / scale

    @property
    def norm(self) -> float | None:
        """L2 norm of all, None if there was none."""
        if any(map(math.isnan, self._norms.values())):
            return math.nan  # `math.hypot` prefers infinity
        return math.hypot(*self._norms.values()) if self._norms else None
