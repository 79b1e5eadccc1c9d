"""All Python calls of the monitor in a calm step, as a tree: ``python -m benchmarks.calm_step``.

In a calm step there is no finding and nothing is logged; only loss and gradients are measured. On a small network these
calls determine the overhead. Shown is the step with the median number of calls of some such steps: most of them are
recorded and evaluated together with a later one (`engine/calm_steps.py`), about every sixth step.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

import lightning_gradexplode
from benchmarks.overhead_models import Model, models
from lightning_gradexplode import GradientExplosionMonitor

STEPS = range(80, 95)
"""The observed steps; none of them is logged, nor any of the 30 steps before."""

Call = tuple[int, str, str]
"""Depth, file and function."""


class _Observer(pl.Callback):
    """Records the calls of each of some steps of the monitor that follows it in the list of callbacks."""

    def __init__(self) -> None:
        self.steps: list[list[Call]] = []
        self._depth = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        """Begin at the first of the steps, and end after the last one."""
        sys.setprofile(None)
        if index in STEPS:
            self.steps.append([])
            self._depth = 0
            sys.setprofile(self._observe)

    def _observe(self, frame: FrameType, event: str, argument: Any) -> None:
        folder = Path(lightning_gradexplode.__file__).parent
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_name
        if folder not in path.parents or name == "state_key":  # which Lightning reads before each hook
            return
        if event == "call":
            self.steps[-1].append((self._depth, str(path.relative_to(folder)), name))
            self._depth += 1
        elif event == "return":
            self._depth -= 1


def calls_of_a_calm_step(model: Model) -> list[Call]:
    """Train a model for some steps, and return the calls of a typical calm one, in their order."""
    observer = _Observer()
    monitor = GradientExplosionMonitor(report=False, log_every_n_steps=50)
    pl.Trainer(
        max_steps=STEPS.stop + 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[observer, monitor],
    ).fit(model, model.batches(STEPS.stop + 1))
    return sorted(observer.steps, key=len)[len(STEPS) // 2]


def main() -> None:
    """Print the calls, and how many there are in how many files, of each folder and together."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    calls = calls_of_a_calm_step(models()["narrow MLP"]())
    for depth, file, name in calls:
        print(f"{'  ' * depth}{file}: {name}")
    for folder, count in Counter(file.rpartition("/")[0] or file for _, file, _ in calls).most_common():
        print(f"{folder}: {count} calls in {len({file for _, file, _ in calls if file.startswith(folder)})} files")
    print(f"{len(calls)} calls in {len({file for _, file, _ in calls})} files")


if __name__ == "__main__":
    main()
