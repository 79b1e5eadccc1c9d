"""Sees exploding gradients in PyTorch Lightning runs coming, says where and why, and keeps the run alive."""

from typing import TYPE_CHECKING, Any

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
from lightning_gradexplode.hosts.torch_loop import GradientWatch
from lightning_gradexplode.records import Cause, Diagnosis, Finding, Histogram, Severity, StepRecord
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

if TYPE_CHECKING:
    from lightning_gradexplode.callback import GradientExplosionMonitor

__all__ = [
    "AdaptiveGradientClip",
    "AdaptiveTensorClip",
    "AutoPolicy",
    "Cause",
    "ClipPolicy",
    "ConstantClip",
    "Detector",
    "Diagnosis",
    "ExplosionError",
    "Finding",
    "GradientExplosionMonitor",
    "GradientWatch",
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

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the callback, and Lightning with it, when it is first used."""
    if name == "GradientExplosionMonitor":
        from lightning_gradexplode.callback import GradientExplosionMonitor

        globals()[name] = GradientExplosionMonitor
        return GradientExplosionMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
