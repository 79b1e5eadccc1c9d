"""Findings to action on the run: clipping, warning, stopping."""

from lightning_gradexplode.respond.base import ExplosionError, Response, Run
from lightning_gradexplode.respond.clipping import AutoPolicy, ClipPolicy, ConstantClip, clip_policy
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn, responses

__all__ = [
    "AutoPolicy",
    "ClipPolicy",
    "ConstantClip",
    "ExplosionError",
    "RaiseError",
    "Response",
    "Run",
    "StopTraining",
    "Warn",
    "clip_policy",
    "responses",
]
