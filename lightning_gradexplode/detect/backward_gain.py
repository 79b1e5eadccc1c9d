"""Growth of the gradients at the outputs of modules: the article's sign 6, module by module."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, FloatArray, ModuleGradients, Severity, StepRecord
from lightning_gradexplode.records.backward_gain import SIGN, message_of_depth, message_of_time
from lightning_gradexplode.records.module_gradients import MANY_CALLS

_FEW = 0.1
"""Share of the elements of error gradients up to which few of them are above 1."""

_SLOW = 1.05
"""Growth per module up to which a total gain is that of depth alone: batch normalization makes gradients grow with
depth at the start of networks that train well (Yang et al. 2019, A Mean Field Theory of Batch Normalization)."""


class BackwardGain(Detector):
    """The gradient grows during the backward pass, from layer to layer or from time step to time step.

    A WARNING, and never CRITICAL by itself, if the gradient at the first module's outputs is more than `total` times
    that at the last one's (unless it grows by at most 5 % per module), or rises by more than `single` times at one
    module (`total` times at a normalization layer, which increases it as much as the small weights before it reduce
    it), or by more than `in_time` times at each time step of a recurrent one and more than `total` times over the whole
    sequence: over few steps a growth of 10 % per step is harmless. The message includes a largest singular value above
    Pascanu's bound; by itself it is not reported, since it is necessary but not sufficient (Pascanu, Mikolov, Bengio
    2013, section 2.1).

    A gain is harmless while the gradients that it leads to are small (`Baselines.has_small_gradient`), as in a run that
    has converged, unless many of their elements are above 1, as those of a loss that was huge at the start.

    Args:
        total: Gain over the depth of the network.
        single: Gain of one module that is not called many times in one pass, and does not share its inputs with another
            module: the gradients of all users of an input are measured together.
        in_time: Growth per time step.
    """

    sign = SIGN
    reads = ("module_gradients",)

    def __init__(self, total: float = 100.0, single: float = 30.0, in_time: float = 1.1) -> None:
        self.total = total
        self.single = single
        self.in_time = in_time

    def check(self, record: StepRecord) -> Finding | None:
        """Check the gradients of modules, at a step at which they were measured."""
        modules = record.module_gradients
        assert modules is not None
        above, baselines = _share_above_one(modules), self.baselines(record)
        if above < _FEW and baselines.has_small_gradient(record):
            return None
        where, rise = modules.steepest() or (None, math.nan)
        if modules.total_gain > self.total and not modules.growth_per_layer <= _SLOW:
            message = message_of_depth(len(modules.modules), modules.total_gain, modules.growth_per_layer, above)
            return self.finding(record, Severity.WARNING, modules.total_gain, self.total, message, where)
        single = self.total if where in modules.normalizations else self.single
        if rise > single and _is_its_own(modules, modules.modules.index(where or "")):
            message = f"the gradient grows {rise:.3g} times at one module; {above:.0%} of the elements are above 1.0"
            return self.finding(record, Severity.WARNING, rise, single, message, where)
        return self._in_time(record, modules)

    def _in_time(self, record: StepRecord, modules: ModuleGradients) -> Finding | None:
        counts = modules.growth_in_time > self.in_time
        if not counts.any():
            return None
        counts &= (_over_the_sequence(modules) > self.total) & _exceeds_later_modules(modules)
        if not counts.any():
            return None
        place = int(np.argmax(np.where(counts, modules.growth_in_time, 0.0)))
        name, growth = modules.modules[place], float(modules.growth_in_time[place])
        message = message_of_time(growth, float(modules.singular_value[place]))
        return self.finding(record, Severity.WARNING, growth, self.in_time, message, name)


def _is_its_own(modules: ModuleGradients, place: int) -> bool:
    """Return whether a gain is that of one module: called a few times, on inputs that no other module has."""
    users = np.count_nonzero(modules.input_norm == modules.input_norm[place])
    return bool(modules.calls[place] < MANY_CALLS and users <= 1)


def _over_the_sequence(modules: ModuleGradients) -> FloatArray:
    """Return how many times each module's gradient grows over all time steps, shape ``(modules,)``."""
    with np.errstate(over="ignore"):
        growth: FloatArray = np.where(modules.calls >= MANY_CALLS, modules.growth_in_time**modules.calls, modules.gain)
    return growth


def _exceeds_later_modules(modules: ModuleGradients) -> npt.NDArray[np.bool_]:
    """Return whether the gradient at each module's outputs or inputs exceeds those at the outputs of all later modules.

    A module that is called on many residual branches, such as a shared convolution, has small gradients that differ.
    """
    largest = np.fmax.accumulate(np.append(modules.output_norm[1:], 0.0)[::-1])[::-1]
    exceeds: npt.NDArray[np.bool_] = np.fmax(modules.output_norm, modules.input_norm) >= largest
    return exceeds


def _share_above_one(modules: ModuleGradients) -> float:
    shares = [share for share in modules.share_above_one.tolist() if not math.isnan(share)]
    return sum(shares) / len(shares) if shares else 0.0
