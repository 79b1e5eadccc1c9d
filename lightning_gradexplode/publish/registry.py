"""Which publisher serves which logger; users add their own."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.comet import CometPublisher
from lightning_gradexplode.publish.mlflow import MLFlowPublisher
from lightning_gradexplode.publish.tensorboard import TensorBoardPublisher
from lightning_gradexplode.publish.wandb import WandbPublisher

Kind = TypeVar("Kind", bound=type[Publisher])

KINDS: list[type[Publisher]] = [TensorBoardPublisher, WandbPublisher, CometPublisher, MLFlowPublisher, Publisher]
"""The first that accepts a logger's experiment is taken."""


def register_publisher(kind: Kind) -> Kind:
    """Let a publisher of your own serve the loggers whose experiment it accepts, before all others.

    Args:
        kind: A subclass of `Publisher`.

    Returns:
        The same class, so that this can stand above it as a decorator.

    Raises:
        TypeError: It is no subclass of `Publisher`.

    Example:
        >>> @register_publisher
        ... class AimPublisher(Publisher):
        ...     accepts = classmethod(lambda cls, experiment: type(experiment).__module__.startswith("aim."))
        >>> KINDS.remove(AimPublisher)
    """
    if not (isinstance(kind, type) and issubclass(kind, Publisher)):
        raise TypeError(f"register_publisher got {kind!r}; it takes a subclass of Publisher")
    if kind not in KINDS:
        KINDS.insert(0, kind)
    return kind


def publisher_for(logger: Any) -> Publisher:
    """Build the publisher of a Lightning logger, opening its experiment."""
    experiment = getattr(logger, "experiment", None)
    return next(kind for kind in KINDS if kind.accepts(experiment))(logger)
