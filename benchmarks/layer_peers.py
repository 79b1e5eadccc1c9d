"""The alarm rules of other tools that compare layers or judge each of them; see `benchmarks.peers`."""

from __future__ import annotations

import numpy as np

from benchmarks.peers import Peer
from lightning_gradexplode import StepRecord
from lightning_gradexplode.records import FloatArray


class FirstOverLast(Peer):
    """AutoTrainer's exploding gradient: the first layer's gradient norm is above 70 times the last one's.

    The first and last weight matrices stand for the layers: parameters named ``weight``, else all.
    """

    name = "AutoTrainer ratio > 70"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the outer layers."""
        norms = layer_norms(record)
        if len(norms) < 2:
            return False
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = norms[0] / norms[-1]
        return bool(not ratio <= 70) and bool(norms[0] != 0)


class DeepChecker(Peer):
    """TheDeepChecker: the mean absolute gradient is above 1e6, or four layer-to-layer ratios in a row are 2 or more.

    Records hold norms and not means: the parameter's norm stands for its mean, which it is never below, and ratios run
    from the last layer towards the first.
    """

    name = "TheDeepChecker"

    def alarms(self, record: StepRecord) -> bool:
        """Look at the levels, then at the ratios."""
        norms = layer_norms(record)
        if (norms > 1e6).any():
            return True
        backwards = norms[::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            steep = backwards[1:] / backwards[:-1] >= 2
        return any(steep[start : start + 4].all() for start in range(len(steep) - 3))


class UpdateRatio(Peer):
    """SageMaker Debugger's WeightUpdateRatio: some weight's change over its size is above 10 or below 1e-8."""

    name = "SageMaker update ratio"

    def alarms(self, record: StepRecord) -> bool:
        """Compare the ratios of all weights that have any."""
        ratios = record.per_parameter.get("update_ratio", np.empty(0))
        used = ratios[record.per_parameter.get("grad_norm", ratios) != 0] if len(ratios) else ratios
        return bool(((used > 10) | (used < 1e-8)).any())


class Vanishing(Peer):
    """SageMaker Debugger's VanishingGradient: a tensor's mean absolute gradient is below 1e-7.

    The norm, which is never below the mean, stands for it.
    """

    name = "SageMaker vanishing"

    def alarms(self, record: StepRecord) -> bool:
        """Look for next to nothing."""
        norms = record.per_parameter.get("grad_norm", np.empty(0))
        return bool((norms < 1e-7).any())


def layer_norms(record: StepRecord) -> FloatArray:
    """Return the gradient norms of the layers, first to last: of parameters named ``weight`` if there are any."""
    norms = record.per_parameter.get("grad_norm", np.empty(0))
    chosen = [place for place, name in enumerate(record.parameters) if "weight" in name.rsplit(".", 1)[-1]]
    return norms[chosen] if chosen else norms


LAYER_PEERS: tuple[type[Peer], ...] = (FirstOverLast, DeepChecker, UpdateRatio, Vanishing)
