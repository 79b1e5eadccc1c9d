"""Error gradients of modules: the change of the gradient in the backward pass through a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from lightning_gradexplode.records.arrays import FloatArray

MANY_CALLS = 8
"""Number of calls in one pass from which a module counts as recurrent."""

_NEAR = 4


@dataclass(frozen=True, slots=True, eq=False)
class ModuleGradients:
    """The error gradients of modules without children: of the loss with respect to their outputs and inputs.

    All arrays have the shape ``(modules,)``. The modules are in the order of their first call in the forward pass; the
    calls of a module in one pass are combined. An unknown value is NaN.

    Args:
        modules: Names of the modules whose outputs had gradients.
        calls: Number of calls in one pass.
        output_norm: L2 norm of the gradient at a module's outputs.
        input_norm: L2 norm of the gradient at its inputs, summed over all uses of an input.
        gain: Norm at the input divided by norm at the output; the geometric mean over calls.
        share_above_one: Share of the elements of the outputs' gradients with an absolute value of at least 1.0.
        growth_in_time: Factor by which the gradient grows from one time step to the previous one: fitted to the
            gradient at the input sequence of a recurrent module, or at the outputs of a module that is called often.
        singular_value: Largest singular value of a recurrent module's recurrent matrices, divided by 1 / gamma, where
            gamma is the bound of the activation's derivative (1 for tanh and relu, 1/4 for sigmoid). Below 1 gradients
            vanish; above 1 they may explode (Pascanu, Mikolov, Bengio 2013, section 2.1).
        normalizations: Names of those of the modules that are normalization layers.
    """

    modules: tuple[str, ...]
    calls: FloatArray
    output_norm: FloatArray
    input_norm: FloatArray
    gain: FloatArray
    share_above_one: FloatArray
    growth_in_time: FloatArray
    singular_value: FloatArray
    normalizations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make the arrays read-only, since records are passed to users' detectors and policies."""
        for field in fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.ndarray):
                view = array.view()
                view.flags.writeable = False
                object.__setattr__(self, field.name, view)

    @property
    def total_gain(self) -> float:
        """Norm of the gradient at the first module's outputs divided by that at the last one's."""
        known = self.output_norm[np.isfinite(self.output_norm) & (self.output_norm > 0)]
        return float(known[0] / known[-1]) if len(known) else math.nan

    @property
    def growth_per_layer(self) -> float:
        """Factor by which the gradient grows from one module to the previous one, fitted to all modules."""
        return growth_rate(self.output_norm)

    def steepest(self) -> tuple[str, float] | None:
        """Return the module at which the gradient grows most in the backward pass, and the factor.

        The growth at a module is its gain, but at most the growth of the median over up to four modules on each side,
        since beside a residual connection the gradient falls and rises in turn, and at most the growth over the largest
        gradient of later modules: at the start of a residual branch the gradient at the inputs is mostly that of the
        connection, and within a branch that is multiplied by a small factor it is small. For a module that is called
        often it is the gain to the power of the number of calls.

        Returns:
            Name and factor; None if no growth is known.
        """
        rises = self._rises()
        if not np.isfinite(rises).any():
            return None
        place = int(np.nanargmax(np.where(np.isfinite(rises), rises, np.nan)))
        return self.modules[place], float(np.exp(min(rises[place], 700.0)))

    def _rises(self) -> FloatArray:
        """Return the natural logarithm of the growth at each module, NaN if it is unknown."""
        outputs, gains, inputs = _logarithms(self.output_norm), _logarithms(self.gain), _logarithms(self.input_norm)
        steps, many = _steps(outputs), self.calls >= MANY_CALLS
        largest = np.fmax.accumulate(outputs[::-1])[::-1]  # from each module on
        at_module = np.fmin(np.fmin(gains, inputs - largest), np.where(np.isnan(gains), np.nan, steps))
        at_module[:1] = np.nan  # there is nothing before the first
        rises = np.where(many, gains * self.calls, at_module)
        # Functions between the outputs of one module and the inputs of the next may increase the gradient as well.
        directly = np.append(outputs[:-1] - inputs[1:], np.nan)
        above_later = np.append(outputs[:-1] - largest[1:], np.nan)
        between = np.fmin(
            np.fmin(directly, above_later), np.where(np.isnan(directly), np.nan, np.append(steps[1:], np.nan))
        )
        counts = np.append(~many[1:], False) & (between > math.log(2.0))
        return np.where(counts, np.fmax(rises, between), rises)


def _logarithms(values: FloatArray) -> FloatArray:
    """Return natural logarithms, NaN for values that are not finite and positive."""
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
    """Fit an exponential to norms by least squares of their logarithms, and return its growth from last to first.

    Args:
        norms: Shape ``(n,)``.

    Returns:
        The factor from one norm to the previous one; NaN for fewer than three finite positive norms.
    """
    usable = np.isfinite(norms) & (norms > 0)
    if usable.sum() < 3:
        return math.nan
    slope = np.polyfit(np.flatnonzero(usable), np.log(norms[usable]), 1)[0]
    return math.exp(-float(slope))
