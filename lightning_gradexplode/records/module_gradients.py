"""Error gradients of nodes: how the gradient changes on its way back through the modules of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MANY_CALLS = 8
"""A module that is called so often in one pass is taken for a recurrent one."""

_NEAR = 4


@dataclass(frozen=True, slots=True, eq=False)
class ModuleGradients:
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

    def __post_init__(self) -> None:
        """Make the arrays read-only: records go to parts that users have written."""
        for field in fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.ndarray):
                view = array.view()
                view.flags.writeable = False
                object.__setattr__(self, field.name, view)

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
        """Return the module at which the gradient rises most on its way back through the network, and how many times.

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
        """Return the logarithm of the rise at each module, NaN where it is not known."""
        outputs, gains, inputs = _logarithms(self.output_norm), _logarithms(self.gain), _logarithms(self.input_norm)
        steps, many = _steps(outputs), self.calls >= MANY_CALLS
        at_module = np.fmin(gains, np.where(np.isnan(gains), np.nan, steps))
        at_module[:1] = np.nan  # there is nothing before the first
        rises = np.where(many, gains * self.calls, at_module)
        # What is no module may raise the gradient as well, between the outputs of one and the inputs of the next.
        directly = np.append(outputs[:-1] - inputs[1:], np.nan)
        between = np.fmin(directly, np.where(np.isnan(directly), np.nan, np.append(steps[1:], np.nan)))
        counts = np.append(~many[1:], False) & (between > math.log(2.0))
        return np.where(counts, np.fmax(rises, between), rises)


def _logarithms(values: FloatArray) -> FloatArray:
    """Return natural logarithms, NaN for what is not finite or not above zero."""
    usable = np.isfinite(values) & (values > 0)
    return np.log(values, out=np.full_like(values, np.nan), where=usable)


def _steps(logs: FloatArray) -> FloatArray:
    """Return, for each place, the median of up to four values before it, less that of up to four from there on."""
    whole = np.median(np.lib.stride_tricks.sliding_window_view(logs, _NEAR), axis=1) if len(logs) >= _NEAR else logs[:0]
    from_here = np.append(whole, [np.median(logs[place:]) for place in range(len(whole), len(logs))])
    first = [np.median(logs[:place]) if place else np.nan for place in range(min(_NEAR, len(logs)))]
    steps: FloatArray = np.append(first, whole[: len(logs) - len(first)]) - from_here
    return steps


def growth_rate(norms: FloatArray) -> float:
    """Fit an exponential to norms by least squares of their logarithms, and return its growth from the end backwards.

    Returns:
        The factor from one norm to the one before it; NaN for fewer than three finite positive ones.
    """
    usable = np.isfinite(norms) & (norms > 0)
    if usable.sum() < 3:
        return math.nan
    slope = np.polyfit(np.flatnonzero(usable), np.log(norms[usable]), 1)[0]
    return math.exp(-float(slope))
