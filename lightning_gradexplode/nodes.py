"""Error gradients of nodes: how the gradient changes on its way back through the modules of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MANY_CALLS = 8
"""A module that is called so often in one pass is taken for a recurrent one."""


@dataclass(frozen=True, slots=True, eq=False)
class NodeGradients:
    """The error gradients of nodes: of the loss with respect to what the modules without children give and take.

    All arrays are of shape ``(modules,)``, the modules in the order of their first call in the forward pass; a module's
    calls in one pass are taken together. A value that is not known is NaN.

    Args:
        modules: Names of the modules whose outputs had gradients.
        calls: Number of calls in one pass.
        output_norm: L2 norm of the gradient at a module's outputs.
        input_norm: L2 norm of the gradient at its inputs; of what all users of an input send back.
        gain: Norm at the input over norm at the output, the geometric mean over calls.
        share_above_one: Share of the outputs' gradient elements with an absolute value of 1.0 and more.
        growth_in_time: Factor by which the gradient grows from one time step to the one before: fitted to the gradient
            at the input sequence of a recurrent module, or at the outputs of a module that is called many times.
        singular_value: Largest singular value of a recurrent module's recurrent matrices, over 1 / gamma, gamma being
            the bound of the activation's derivative (1 for tanh and relu, 1/4 for sigmoid). Below 1 gradients vanish;
            above 1 they may explode (Pascanu, Mikolov, Bengio 2013).
    """

    modules: tuple[str, ...]
    calls: FloatArray
    output_norm: FloatArray
    input_norm: FloatArray
    gain: FloatArray
    share_above_one: FloatArray
    growth_in_time: FloatArray
    singular_value: FloatArray

    @property
    def total_gain(self) -> float:
        """The gradient at the first module's outputs over that at the last one's: the product of gains over depth."""
        known = self.output_norm[np.isfinite(self.output_norm) & (self.output_norm > 0)]
        return float(known[0] / known[-1]) if len(known) else math.nan

    @property
    def growth_per_layer(self) -> float:
        """The factor by which the gradient grows from one module to the one before it, fitted to all."""
        return growth_rate(self.output_norm)

    def steepest(self) -> tuple[str, float] | None:
        """Give the module at which the gradient rises most on its way back through the network, and how many times.

        A module counts by its gain, and by no more than the rise of the medians of up to four nodes on both sides of
        it, for beside a residual connection the gradient falls and rises in turn; a module that is called many times,
        by its gain to the power of its calls.

        Returns:
            None if no rise is known.
        """
        rises = self._rises()
        if not np.isfinite(rises).any():
            return None
        place = int(np.nanargmax(np.where(np.isfinite(rises), rises, np.nan)))
        return self.modules[place], float(np.exp(min(rises[place], 700.0)))

    def _rises(self) -> FloatArray:
        """Give the logarithm of the rise at each module, NaN where it is not known."""
        outputs, gains, inputs = _logarithms(self.output_norm), _logarithms(self.gain), _logarithms(self.input_norm)
        rises = np.full(len(self.modules), np.nan)
        for place in range(len(self.modules)):
            if self.calls[place] >= MANY_CALLS:
                rises[place] = gains[place] * self.calls[place]
            elif place and np.isfinite(gains[place]):
                rises[place] = min(gains[place], _step(outputs, place))
            after = place + 1
            if after < len(self.modules) and self.calls[after] < MANY_CALLS and np.isfinite(inputs[after]):
                between = min(outputs[place] - inputs[after], _step(outputs, after))  # by what is no module
                rises[place] = np.fmax(rises[place], between) if between > math.log(2.0) else rises[place]
        return rises


def _logarithms(values: FloatArray) -> FloatArray:
    """Give natural logarithms, NaN for what is not finite or not above zero."""
    usable = np.isfinite(values) & (values > 0)
    return np.log(values, out=np.full_like(values, np.nan), where=usable)


def _step(logs: FloatArray, place: int) -> float:
    """Give the median of up to four values before a place, less that of up to four from there on."""
    return float(np.median(logs[max(0, place - 4) : place]) - np.median(logs[place : place + 4]))


def growth_rate(norms: FloatArray) -> float:
    """Fit an exponential to norms by least squares of their logarithms, and give its growth from the end backwards.

    Returns:
        The factor from one norm to the one before it; NaN for fewer than three finite positive ones.
    """
    usable = np.isfinite(norms) & (norms > 0)
    if usable.sum() < 3:
        return math.nan
    slope = np.polyfit(np.flatnonzero(usable), np.log(norms[usable]), 1)[0]
    return math.exp(-float(slope))
