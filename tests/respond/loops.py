"""A training loop without any optional capability, and one that has them, for tests of responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records import Finding, FloatArray, Severity, StepRecord
from lightning_gradexplode.respond import ResponseContext


class PlainLoop(TrainingLoop):
    """A loop that can neither stop nor save."""

    def __init__(self, module: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.net = nn.Linear(3, 2) if module is None else module
        self.optimizer = torch.optim.SGD([*self.net.parameters()], lr=0.1) if optimizer is None else optimizer
        self.schedules: list[Any] = []
        self.averages: dict[str, list[Tensor]] = {}

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.net

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one optimizer."""
        return [self.optimizer]

    @property
    def step(self) -> int:
        """Not counted."""
        return 0

    @property
    def schedulers(self) -> Sequence[Any]:
        """Those that a test has put there."""
        return self.schedules

    @property
    def weight_averages(self) -> Mapping[str, Sequence[Tensor]]:
        """Those that a test has put there."""
        return self.averages


class CapableLoop(PlainLoop):
    """A loop that can stop, and save checkpoints if its disk is not full."""

    def __init__(self, least: str = "", disk_is_full: bool = False) -> None:
        super().__init__()
        self.least = least
        self.disk_is_full = disk_is_full
        self.should_stop = False

    @property
    def can_stop(self) -> bool:
        """It can."""
        return True

    @property
    def can_save_checkpoints(self) -> bool:
        """It can."""
        return True

    @property
    def minimum_training(self) -> str:
        """What keeps it going."""
        return self.least

    def stop(self) -> None:
        """Record the call."""
        self.should_stop = True

    def save_checkpoint(self, path: Path) -> None:
        """Write the weights."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a part of it")
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        torch.save(self.net.state_dict(), path)


def finding(sign: str = "nonfinite-gradient", step: int = 3) -> Finding:
    """Build a critical finding."""
    return Finding(step, sign, Severity.CRITICAL, "layer.weight", float("inf"), 0.0, f"a {sign} on purpose")


def context(
    loop: TrainingLoop | None = None,
    before_update: bool = True,
    step: int = 3,
    severity: int = 0,
    grad_norm: float = 1.0,
    **options: Any,
) -> ResponseContext:
    """Build what a response gets at a step."""
    record = StepRecord(step=step, grad_norm=grad_norm)
    return ResponseContext(loop or PlainLoop(), before_update, record=record, severity=severity, **options)


class OtherRank:
    """A process group of two, in which the other process sends what a test says.

    Args:
        sends: Called with what this process sends; returns what the other one does.
    """

    size = 2
    device = torch.device("cpu")

    def __init__(self, sends: Callable[[FloatArray], FloatArray]) -> None:
        self.sends = sends

    def gather(self, values: FloatArray) -> FloatArray:
        """Return both processes' values, shape ``(2, n)``."""
        return np.stack([values, self.sends(values)])

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Do the same with tensors."""
        return torch.from_numpy(self.gather(values.numpy()).reshape(-1))

    def leave(self, message: FloatArray) -> None:
        """Send the message."""
        self.gather(message)

    def close(self) -> None:
        """Do nothing."""


class JoinedLoop(CapableLoop):
    """A loop of two processes, the other one being made up."""

    def __init__(self, sends: Callable[[FloatArray], FloatArray]) -> None:
        super().__init__()
        self.group = OtherRank(sends)

    @property
    def process_group(self) -> Any:
        """Both processes."""
        return self.group
