"""What the error gradients of nodes show: the article's sign 6, node by node."""

from __future__ import annotations

import math

from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.records import Finding, ModuleGradients, Severity, StepRecord


class BackwardGain(Detector):
    """The gradient grows on its way back through the network, from layer to layer or from time step to time step.

    A warning, and never critical by itself, if the gradient at the first module's outputs is more than `total` times
    that at the last one's, or rises by more than `single` times at one module, or by more than `in_time` times at each
    time step of a recurrent one. A largest singular value above Pascanu's bound is told along with it; by itself it is
    no sign, for it is necessary and not sufficient (Pascanu, Mikolov, Bengio 2013, section 2.1).

    The limits were chosen on the tuning half of the zoo: in its 24 healthy families the total was 32 at most and the
    gain of one module 8.1; in the exploding ones, near the loss of the run, from 100 to 1e17.

    Args:
        total: Gain over the depth of the network.
        single: Gain of one module.
        in_time: Growth per time step.
    """

    sign = "backward-gain"
    reads = ("module_gradients",)

    def __init__(self, total: float = 100.0, single: float = 30.0, in_time: float = 1.1) -> None:
        self.total = total
        self.single = single
        self.in_time = in_time

    def check(self, record: StepRecord) -> Finding | None:
        """Judge the profile of a step at which it was measured."""
        nodes = record.module_gradients
        assert nodes is not None
        steepest = nodes.steepest()
        where, rise = steepest or (None, math.nan)
        above = _share_above_one(nodes)
        if nodes.total_gain > self.total:
            message = (
                f"from the last of {len(nodes.modules)} modules to the first the gradient grows {nodes.total_gain:.3g} "
                f"times, {nodes.growth_per_layer:.3g} a module; {above:.0%} of the nodes are above 1.0"
            )
            return self.finding(record, Severity.WARNING, nodes.total_gain, self.total, message, where)
        if rise > self.single:
            message = f"the gradient grows {rise:.3g} times at one module; {above:.0%} of the nodes are above 1.0"
            return self.finding(record, Severity.WARNING, rise, self.single, message, where)
        return self._in_time(record, nodes)

    def _in_time(self, record: StepRecord, nodes: ModuleGradients) -> Finding | None:
        growths = zip(nodes.modules, nodes.growth_in_time, nodes.singular_value, strict=True)
        name, growth, value = max(growths, key=lambda one: one[1] if one[1] == one[1] else 0.0)
        if not growth > self.in_time:
            return None
        bound = "" if math.isnan(value) else f"; its recurrent matrix is at {value:.3g} times Pascanu's bound"
        message = f"the gradient grows {growth:.3g} times at each time step{bound}"
        return self.finding(record, Severity.WARNING, growth, self.in_time, message, name)


def _share_above_one(nodes: ModuleGradients) -> float:
    shares = [share for share in nodes.share_above_one.tolist() if not math.isnan(share)]
    return sum(shares) / len(shares) if shares else 0.0
