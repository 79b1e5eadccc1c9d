"""Findings to action on the run: clipping, skipping, learning rate, penalties, rollback, checkpoints, stopping."""

from lightning_gradexplode.respond.base import ExplosionError, Response, Run
from lightning_gradexplode.respond.chain import Chain
from lightning_gradexplode.respond.checkpoint import SaveCheckpoint
from lightning_gradexplode.respond.clipping import AutoPolicy, ClipPolicy, ConstantClip, clip_policy
from lightning_gradexplode.respond.learning_rate import ReduceLearningRate
from lightning_gradexplode.respond.naming import responses
from lightning_gradexplode.respond.penalty import RecurrentBound, WeightPenalty
from lightning_gradexplode.respond.rollback import Rollback
from lightning_gradexplode.respond.skipping import SkipStep
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn

__all__ = [
    "AutoPolicy",
    "Chain",
    "ClipPolicy",
    "ConstantClip",
    "ExplosionError",
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
    "clip_policy",
    "responses",
]
