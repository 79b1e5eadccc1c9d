"""The adapter of each kind of logger."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.comet import CometAdapter
from lightning_gradexplode.loggers.litlogger import LitLoggerAdapter
from lightning_gradexplode.loggers.mlflow import MLFlowAdapter
from lightning_gradexplode.loggers.tensorboard import TensorBoardAdapter
from lightning_gradexplode.loggers.trackio import TrackioAdapter
from lightning_gradexplode.loggers.wandb import WandbAdapter

Kind = TypeVar("Kind", bound=type[LoggerAdapter])

KINDS: list[type[LoggerAdapter]] = [
    TensorBoardAdapter,
    WandbAdapter,
    CometAdapter,
    MLFlowAdapter,
    TrackioAdapter,
    LitLoggerAdapter,
    LoggerAdapter,
]
"""Adapters in the order in which they are tried; the first one that accepts a logger's experiment is used."""


def register_logger_adapter(kind: Kind) -> Kind:
    """Register an adapter. It is tried before the others.

    Args:
        kind: A subclass of `LoggerAdapter`.

    Returns:
        The same class, so that this function can be used as a decorator.

    Raises:
        TypeError: It is no subclass of `LoggerAdapter`.

    Example:
        >>> @register_logger_adapter
        ... class AimAdapter(LoggerAdapter):
        ...     accepts = classmethod(lambda cls, experiment: type(experiment).__module__.startswith("aim."))
        >>> KINDS.remove(AimAdapter)
    """
    if not (isinstance(kind, type) and issubclass(kind, LoggerAdapter)):
        raise TypeError(f"kind must be a subclass of LoggerAdapter, got {kind!r}")
    if kind not in KINDS:
        KINDS.insert(0, kind)
    return kind


def adapter_for(logger: Any) -> LoggerAdapter:
    """Return the adapter of a logger, opening its experiment."""
    experiment = getattr(logger, "experiment", logger)
    return next(kind for kind in KINDS if kind.accepts(experiment))(logger)
