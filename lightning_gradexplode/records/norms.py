"""L2 norms of the tensors of one optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lightning_gradexplode.records.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Norms:
    """L2 norms per tensor and of all tensors together.

    Args:
        each: Norm of each tensor, shape ``(tensors,)``; 0 for an empty or missing tensor, NaN or infinite if an
            element is.
        nonfinite: Number of NaN and infinite elements, shape ``(tensors,)``; NaN if unknown.

    Attributes:
        total: Norm of all elements together, computed without overflow of the squares.
    """

    each: FloatArray
    nonfinite: FloatArray
    total: float = field(init=False)

    def __post_init__(self) -> None:
        total = math.hypot(*self.each.tolist())
        if not total < math.inf and np.isnan(self.each).any():  # hypot(inf, nan) is inf
            total = math.nan
        object.__setattr__(self, "total", total)

    @property
    def nonfinite_total(self) -> int | None:
        """Number of NaN and infinite elements in all tensors together, None if unknown."""
        total = sum(self.nonfinite.tolist())
        return None if math.isnan(total) else int(total)

    def divided_by(self, divisor: float) -> Norms:
        """Return the norms of the same tensors with each element divided by a number."""
        return self if divisor == 1.0 else Norms(self.each / divisor, self.nonfinite)
