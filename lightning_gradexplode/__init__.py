"""Sees exploding gradients in PyTorch Lightning runs coming, says where and why, and keeps the run alive."""

from lightning_gradexplode.callback import GradientExplosionMonitor
from lightning_gradexplode.clip import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    AutoPolicy,
    ClipPolicy,
    ConstantClip,
    PercentileClip,
    ZScoreClip,
)
from lightning_gradexplode.detect import Detector, default_detectors
from lightning_gradexplode.records import Finding, Histogram, Severity, StepRecord
from lightning_gradexplode.respond import (
    ExplosionError,
    RaiseError,
    RecurrentBound,
    ReduceLearningRate,
    Response,
    Rollback,
    SaveCheckpoint,
    SkipStep,
    StopTraining,
    Warn,
    WeightPenalty,
)

__all__ = [
    "AdaptiveGradientClip",
    "AdaptiveTensorClip",
    "AutoPolicy",
    "ClipPolicy",
    "ConstantClip",
    "Detector",
    "ExplosionError",
    "Finding",
    "GradientExplosionMonitor",
    "Histogram",
    "PercentileClip",
    "RaiseError",
    "RecurrentBound",
    "ReduceLearningRate",
    "Response",
    "Rollback",
    "SaveCheckpoint",
    "Severity",
    "SkipStep",
    "StepRecord",
    "StopTraining",
    "Warn",
    "WeightPenalty",
    "ZScoreClip",
    "default_detectors",
]

__version__ = "0.1.0"
