"""Detects exploding gradients in PyTorch and Lightning, names the cause, and keeps the run alive."""

import importlib
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
    from lightning_gradexplode.hosts.fabric import FabricWatch
    from lightning_gradexplode.hosts.gradient_watch import GradientWatch
    from lightning_gradexplode.hosts.transformers import (
        GradientExplosionTrainerCallback as GradientExplosionTrainerCallback,  # not in `__all__`: its base is optional
    )

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
    "FabricWatch",
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


_AT_FIRST_USE = {
    "FabricWatch": "hosts.fabric",
    "GradientExplosionMonitor": "callback",
    "GradientExplosionTrainerCallback": "hosts.transformers",
    "GradientWatch": "hosts.gradient_watch",
}
"""Names that are imported when they are first used, with the packages that they need; and their modules."""


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_AT_FIRST_USE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
