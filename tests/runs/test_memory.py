"""What the monitor holds on to between steps."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.models import Regression
from tests.runs.probe import QUIET

NOT_HELD = (nn.Module, pl.Trainer, torch.optim.Optimizer, type, types.ModuleType, types.FunctionType)
"""What belongs to the run, or to Python."""


def bytes_held(root: object) -> int:
    """Add up the sizes of all objects that can be reached from one, without those of the run itself."""
    seen: set[int] = set()
    total, left = 0, [root]
    while left:
        one: Any = left.pop()
        if id(one) in seen or isinstance(one, (*NOT_HELD, nn.Parameter)):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            total += one.untyped_storage().nbytes()
        elif isinstance(one, np.ndarray):
            total += one.nbytes if one.base is None else 0
        else:
            total += sys.getsizeof(one)
        left += gc.get_referents(one)
    return total


class Held(pl.Callback):
    """Measures what the monitor holds after each batch."""

    def __init__(self, monitor: GradientExplosionMonitor) -> None:
        self.monitor = monitor
        self.sizes: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Measure; this callback stands behind the monitor."""
        self.sizes.append(bytes_held(self.monitor))


@pytest.mark.parametrize("clip", [None, 1e-3, "auto"])
@pytest.mark.parametrize(("width", "depth"), [(6, 500), (700, 3)])
def test_memory_is_a_hundredth_of_the_parameters_and_two_megabytes(clip: Any, width: int, depth: int) -> None:
    """After every step, a logged one too: no copy of gradients or weights is left, in large models and in long ones."""
    layers = nn.Sequential(nn.Linear(6, width), *[nn.Linear(width, width) for _ in range(depth)], nn.Linear(width, 1))
    monitor = GradientExplosionMonitor(
        log_every_n_steps=3, histogram_every_n_steps=0, clip=clip, detectors=[], report=False
    )
    held = Held(monitor)
    trainer = pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor, held])
    trainer.fit(Regression(layers=layers))
    parameters = sum(parameter.nbytes for parameter in layers.parameters())
    assert len(held.sizes) == 8
    assert max(held.sizes) < 0.01 * parameters + 2**21
