"""Detectors: each finds one symptom in the records of a run, without tensors or a trainer.

The *article* that docstrings refer to is Jason Brownlee, "A Gentle Introduction to Exploding Gradients in Neural
Networks" (https://machinelearningmastery.com/exploding-gradients-in-neural-networks/). Its six signs are: the loss does
not improve, is unstable, or becomes NaN; weights grow quickly, or become NaN; error gradients stay above 1.0.
"""

from collections.abc import Sequence

from lightning_gradexplode.detect.backward_gain import BackwardGain
from lightning_gradexplode.detect.base import Detector
from lightning_gradexplode.detect.clipping import ClipSaturated
from lightning_gradexplode.detect.gradient_growth import GradientGrowth, GradientSpike
from lightning_gradexplode.detect.gradients import GradientAboveOne
from lightning_gradexplode.detect.loss import DivergingLoss, StalledLoss, UnstableLoss
from lightning_gradexplode.detect.nonfinite import NonFiniteGradient, NonFiniteLoss, NonFiniteWeight
from lightning_gradexplode.detect.small_gradients import VanishingGradient, ZeroGradient
from lightning_gradexplode.detect.weights import LargeUpdate, WeightGrowth

__all__ = [
    "BackwardGain",
    "ClipSaturated",
    "Detector",
    "DivergingLoss",
    "GradientAboveOne",
    "GradientGrowth",
    "GradientSpike",
    "LargeUpdate",
    "NonFiniteGradient",
    "NonFiniteLoss",
    "NonFiniteWeight",
    "StalledLoss",
    "UnstableLoss",
    "VanishingGradient",
    "WeightGrowth",
    "ZeroGradient",
    "default_detectors",
    "known_signs",
]


def default_detectors(*own: Detector) -> list[Detector]:
    """Build the default detectors of a monitor.

    Args:
        own: Detectors that replace the default detector of the same sign; detectors of other signs are added.
    """
    defaults: list[Detector] = [
        NonFiniteLoss(),
        NonFiniteGradient(),
        NonFiniteWeight(),
        DivergingLoss(),
        GradientGrowth(),
        GradientSpike(),
        WeightGrowth(),
        LargeUpdate(),
        UnstableLoss(),
        StalledLoss(),
        VanishingGradient(),
        ZeroGradient(),
        ClipSaturated(),
        GradientAboveOne(),
        BackwardGain(),
    ]
    by_sign = {detector.sign: detector for detector in own}
    replaced = [by_sign.pop(default.sign, default) for default in defaults]
    return replaced + [detector for detector in own if detector.sign in by_sign]


def known_signs(detectors: Sequence[Detector] | None = None) -> frozenset[str]:
    """Return the signs that can be ignored: of the default detectors, and of those that a user has given."""
    return frozenset(detector.sign for detector in (*default_detectors(), *(detectors or ())))
