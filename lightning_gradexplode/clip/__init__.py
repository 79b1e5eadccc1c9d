"""Clip policies: the threshold that the gradients of the coming step are clipped by."""

from lightning_gradexplode.clip.auto import AutoPolicy
from lightning_gradexplode.clip.base import ClipPolicy, ConstantClip
from lightning_gradexplode.clip.guarded import GuardedPolicy
from lightning_gradexplode.clip.per_tensor import AdaptiveGradientClip, AdaptiveTensorClip
from lightning_gradexplode.clip.percentile import PercentileClip
from lightning_gradexplode.clip.z_score import ZScoreClip

__all__ = [
    "AdaptiveGradientClip",
    "AdaptiveTensorClip",
    "AutoPolicy",
    "ClipPolicy",
    "ConstantClip",
    "GuardedPolicy",
    "PercentileClip",
    "ZScoreClip",
]
