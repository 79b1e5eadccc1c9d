"""A training of another package, with or without the monitor, and with or without a fault."""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lightning_gradexplode import GradientExplosionMonitor

TOO_HIGH = "a learning rate far too high"
"""The fault that every training can have."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The end of a training.

    Args:
        module: The trained network.
        monitor: The monitor, None without one.
        error: The exception that has ended it, empty without one.
    """

    module: nn.Module
    monitor: Any
    error: str = ""


class Training:
    """A training of one package. Its faults were written down before any run was measured.

    Attributes:
        package: The package, as pip installs it.
        faults: The kinds of cause that are right for each fault.
        rates: The usual learning rate, and the one that is far too high.
    """

    package: ClassVar[str]
    faults: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    rates: ClassVar[tuple[float, float]] = (1e-3, 10.0)

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.package}: {type(self).__name__}"

    def all_faults(self) -> dict[str, tuple[str, ...]]:
        """Return all faults with the kinds of cause that are right."""
        return {**self.faults, TOO_HIGH: ("learning-rate",)}

    def run(self, fault: str, is_monitored: bool) -> Trained:
        """Train with fixed random numbers.

        Args:
            fault: One of `all_faults`, empty for none.
            is_monitored: Whether the monitor is attached.
        """
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.module: nn.Module = nn.Identity()
        self.monitor: Any = None
        self.is_monitored = is_monitored
        error = ""
        try:
            self.train(fault, self.rates[fault == TOO_HIGH])
        except Exception as raised:
            if not fault:
                raise
            error = type(raised).__name__
        return Trained(self.module, self.monitor, error)

    def train(self, fault: str, rate: float) -> None:
        """Train, and set `module` and `monitor`."""
        raise NotImplementedError

    def callbacks(self) -> list[Any]:
        """Return the callbacks for a Trainer of Lightning, and set `monitor`."""
        if self.is_monitored:
            self.monitor = GradientExplosionMonitor(report=False)
        return [] if self.monitor is None else [self.monitor]


QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
"""Arguments of a Trainer that prints nothing."""


def part(module: str, name: str) -> Any:
    """Return a class or function of a package that may not be installed."""
    return getattr(importlib.import_module(module), name)


def digest(module: nn.Module) -> str:
    """Return a hash of all weights and buffers."""
    total = hashlib.sha256()
    for _, one in sorted(module.state_dict().items()):
        if isinstance(one, torch.Tensor) and one.numel():
            total.update(one.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
