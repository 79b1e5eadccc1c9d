"""The weights' norm, and how much one optimizer step changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.norms import Norms, measure_norms
from lightning_gradexplode.measure.processes import Shards
from lightning_gradexplode.records import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class WeightChange:
    """Weights after a step, and their change by it.

    Args:
        weights: Norms of the weights after the step.
        before: Norms of the weights before the step.
        change: Norms of the difference.
        differences: The differences' elements that this process holds: weight after less weight before.
    """

    weights: Norms
    before: Norms
    change: Norms
    differences: Sequence[Tensor]

    @property
    def update_ratio(self) -> float:
        """Norm of the change over norm of the weights before the step; 0/0 is 0, and x/0 is inf."""
        return float(_ratio(np.array([self.change.total]), np.array([self.before.total]))[0])

    @property
    def update_ratio_each(self) -> FloatArray:
        """The same per parameter, shape ``(parameters,)``."""
        return _ratio(self.change.each, self.before.each)


class WeightCopy:
    """A copy of the weights, taken before an optimizer step and used up after it.

    Args:
        parameters: The weights. The copy holds as much memory as they do, until `change` is called.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._copies = [flat_elements(parameter).clone() for parameter in parameters]

    def change(self, parameters: Sequence[Tensor], shards: Shards) -> WeightChange:
        """Compare with the weights after the step; the copy's memory is reused for the differences.

        Args:
            parameters: The same weights, in the same order.
            shards: How they are spread over processes.
        """
        before = shards.norms(measure_norms(self._copies))
        for copy, parameter in zip(self._copies, parameters, strict=True):
            torch.sub(flat_elements(parameter), copy, out=copy)
        differences, self._copies = self._copies, []
        after = shards.norms(measure_norms(parameters))
        return WeightChange(after, before, shards.norms(measure_norms(differences)), differences)


def _ratio(change: FloatArray, weights: FloatArray) -> FloatArray:
    """Divide elementwise, 0/0 being 0: a frozen zero does not change."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(change == 0.0, np.where(np.isnan(weights), np.nan, 0.0), change / weights)
