"""Which publisher serves which logger; users add their own."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.comet import CometAdapter
from lightning_gradexplode.loggers.mlflow import MLFlowAdapter
from lightning_gradexplode.loggers.tensorboard import TensorBoardAdapter
from lightning_gradexplode.loggers.wandb import WandbAdapter

Kind = TypeVar("Kind", bound=type[LoggerAdapter])

KINDS: list[type[LoggerAdapter]] = [
    TensorBoardAdapter,
    WandbAdapter,
    CometAdapter,
    MLFlowAdapter,
    LoggerAdapter,
]
"""The first that accepts a logger's experiment is taken."""


def register_logger_adapter(kind: Kind) -> Kind:
    """Let a publisher of your own serve the loggers whose experiment it accepts, before all others.

    Args:
        kind: A subclass of `LoggerAdapter`.

    Returns:
        The same class, so that this can stand above it as a decorator.

    Raises:
        TypeError: It is no subclass of `LoggerAdapter`.

    Example:
        >>> @register_logger_adapter
        ... class AimAdapter(LoggerAdapter):
        ...     accepts = classmethod(lambda cls, experiment: type(experiment).__module__.startswith("aim."))
        >>> KINDS.remove(AimAdapter)
    """
    if not (isinstance(kind, type) and issubclass(kind, LoggerAdapter)):
        raise TypeError(f"register_logger_adapter got {kind!r}; it takes a subclass of LoggerAdapter")
    if kind not in KINDS:
        KINDS.insert(0, kind)
    return kind


def publisher_for(logger: Any) -> LoggerAdapter:
    """Build the publisher of a Lightning logger, opening its experiment."""
    experiment = getattr(logger, "experiment", None)
    return next(kind for kind in KINDS if kind.accepts(experiment))(logger)
