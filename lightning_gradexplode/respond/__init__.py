"""Responses to critical findings: skipping, learning rate, penalties, rollback, checkpoints, stopping."""

from lightning_gradexplode.respond.base import ExplosionError, Response, ResponseContext
from lightning_gradexplode.respond.chain import ResponseChain
from lightning_gradexplode.respond.checkpoint import SaveCheckpoint
from lightning_gradexplode.respond.learning_rate import ReduceLearningRate
from lightning_gradexplode.respond.penalty import RecurrentBound, WeightPenalty
from lightning_gradexplode.respond.rollback import Rollback
from lightning_gradexplode.respond.skipping import SkipStep
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn

__all__ = [
    "ExplosionError",
    "RaiseError",
    "RecurrentBound",
    "ReduceLearningRate",
    "Response",
    "ResponseChain",
    "ResponseContext",
    "Rollback",
    "SaveCheckpoint",
    "SkipStep",
    "StopTraining",
    "Warn",
    "WeightPenalty",
]
