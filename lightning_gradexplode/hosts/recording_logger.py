"""A Lightning logger for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.hosts.lightning_namespaces import Logger


class RecordingLogger(Logger):
    """A Lightning logger, of both namespaces, that keeps all values in memory.

    Args:
        name: Its name.
    """

    def __init__(self, name: str = "recording") -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        """The step and the values of each call of `log_metrics`, oldest first."""
        self._name = name

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def version(self) -> int:
        """Always 0."""
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep values."""
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Accept hyperparameters, which are not kept."""

    def values(self, name: str) -> list[tuple[int | None, float]]:
        """Return each step at which a metric was logged, with its value, oldest first."""
        return [(step, metrics[name]) for step, metrics in self.metrics if name in metrics]
