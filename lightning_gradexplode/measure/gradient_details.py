"""What is measured of the gradients of a step that is logged, besides their norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_gradexplode.measure.histograms import measure_histograms
from lightning_gradexplode.measure.maxima import count_at_least, measure_maxima
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import FloatArray, Histogram


@dataclass(frozen=True, slots=True, eq=False)
class GradientDetails:
    """Details of the gradients that this process holds, of all parameters of an optimizer.

    Args:
        maxima: The largest absolute value of each, shape ``(parameters,)``.
        above_one: The number of its elements with an absolute value of 1.0 and more, shape ``(parameters,)``.
        histograms: Histograms by the name of a parameter, of those that are shown; None if they were not due.
    """

    maxima: FloatArray
    above_one: FloatArray
    histograms: Mapping[str, Histogram] | None = None

    @classmethod
    def of(cls, parameters: ParameterSet, scale: float, with_histograms: bool = False) -> GradientDetails:
        """Measure the gradients as they lie in memory now.

        Args:
            parameters: Whose gradients.
            scale: What they are multiplied by.
            with_histograms: Whether to count them into histograms as well.
        """
        gradients = parameters.gradients
        maxima, above_one = measure_maxima(gradients, scale), np.zeros(len(gradients))
        # A gradient whose maximum is below 1.0 needs no counting.
        above = {n: one for n, one in enumerate(gradients) if one is not None and not maxima[n] < 1.0}
        above_one[list(above)] = count_at_least(list(above.values()), scale)
        return cls(maxima, above_one, shown_histograms(parameters, gradients, scale) if with_histograms else None)


def shown_histograms(
    parameters: ParameterSet, tensors: Sequence[Tensor | None], scale: float = 1.0
) -> dict[str, Histogram]:
    """Count something of each shown parameter, such as its gradient, into a histogram.

    Args:
        parameters: The parameters.
        tensors: What to count, one for each of them; None has no histogram.
        scale: What the elements are divided by.
    """
    chosen = {
        name: tensor
        for name, tensor, shown in zip(parameters.names, tensors, parameters.shown, strict=True)
        if shown and tensor is not None
    }
    return dict(zip(chosen, measure_histograms(list(chosen.values()), scale), strict=True))
