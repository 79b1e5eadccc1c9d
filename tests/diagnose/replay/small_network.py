"""A small network whose steps the tests compute again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step
from lightning_gradexplode.records import Replay


class Network(nn.Module):
    """A small network with room for attributes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        result: Tensor = self.norm(self.body(x))
        return result


def square(model: Any, batch: Tensor, batch_idx: int) -> Any:
    """Return the sum of the squared outputs."""
    return model(batch).square().sum()


def replayed(
    step: Callable[..., Any] = square,
    module: nn.Module | None = None,
    batch: Any = None,
    failed: Any = None,
    expected_loss: float | None = None,
    **settings: Any,
) -> Replay:
    """Return the replay of a step of a small network; further settings are those of `ReplayStep`."""
    module, batch = module or Network(), torch.randn(6, 4) if batch is None else batch
    return replay_step(ReplayStep(module, step, batch, **settings), failed=failed, expected_loss=expected_loss)
