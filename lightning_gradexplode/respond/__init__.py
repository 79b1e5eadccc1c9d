"""Findings to action on the run: clipping, skipping, learning rate, penalties, rollback, checkpoints, stopping."""

from lightning_gradexplode.respond.automatic import AutoPolicy
from lightning_gradexplode.respond.base import ExplosionError, Response, Run
from lightning_gradexplode.respond.chain import Chain
from lightning_gradexplode.respond.checkpoint import SaveCheckpoint
from lightning_gradexplode.respond.clipping import ClipPolicy, ConstantClip
from lightning_gradexplode.respond.learning_rate import ReduceLearningRate
from lightning_gradexplode.respond.naming import clip_policy, responses
from lightning_gradexplode.respond.penalty import RecurrentBound, WeightPenalty
from lightning_gradexplode.respond.per_tensor import AdaptiveGradientClip, AdaptiveTensorClip
from lightning_gradexplode.respond.percentile import PercentileClip
from lightning_gradexplode.respond.rollback import Rollback
from lightning_gradexplode.respond.skipping import SkipStep
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn
from lightning_gradexplode.respond.z_score import ZScoreClip

__all__ = [
    "AdaptiveGradientClip",
    "AdaptiveTensorClip",
    "AutoPolicy",
    "Chain",
    "ClipPolicy",
    "ConstantClip",
    "ExplosionError",
    "PercentileClip",
    "RaiseError",
    "RecurrentBound",
    "ReduceLearningRate",
    "Response",
    "Rollback",
    "Run",
    "SaveCheckpoint",
    "SkipStep",
    "StopTraining",
    "Warn",
    "WeightPenalty",
    "ZScoreClip",
    "clip_policy",
    "responses",
]
