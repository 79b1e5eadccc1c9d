"""A factor of the learning rate that is in force during an optimizer's step only."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class LearningRateFactor:
    """Multiplies the learning rate of every parameter group during an optimizer's step, and only then.

    Between the steps the groups hold what the schedule has set. So a scheduler that computes a rate from the one
    before is not changed, and a checkpoint holds the schedule's own rates.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[dict[str, Any], Any]] = []

    def apply(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply the rates."""
        if factor == 1.0:
            return
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._originals.append((group, rate.clone()))
                rate.mul_(factor)  # in place: a captured graph reads this very tensor
            elif isinstance(rate, (int, float)):
                self._originals.append((group, rate))
                group["lr"] = rate * factor

    def undo(self) -> None:
        """Restore the rates as they were."""
        for group, rate in self._originals:
            if isinstance(rate, torch.Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self._originals = []
