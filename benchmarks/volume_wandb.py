"""The volume of a W&B run for a day of training: 200,000 steps of a model of 300 tensors, with the defaults.

A part of the logs is written to an offline run, whose file contains what an online run sends. All records of a kind
have the same size except for their digits, so that the volume is extrapolated from the size of the file.

    python -m benchmarks.volume_wandb
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import StepRecord

STEPS, TENSORS, SCALARS_EVERY, HISTOGRAMS_EVERY = 200_000, 300, 50, 500
PARTS = (2, 6)
"""Numbers of histogram logs; their difference is used, so that the fixed size of a run does not count."""


def records(histogram_logs: int) -> Iterator[StepRecord]:
    """Return the records of a run's beginning that are logged, with gradients of normal numbers of many sizes."""
    names = tuple(f"network.layers.{index // 2}.{('weight', 'bias')[index % 2]}" for index in range(TENSORS))
    generator = torch.Generator().manual_seed(0)
    for log in range(histogram_logs * HISTOGRAMS_EVERY // SCALARS_EVERY):
        norms = np.exp(np.random.default_rng(log).normal(size=9))
        histograms = {}
        if (log + 1) % (HISTOGRAMS_EVERY // SCALARS_EVERY) == 0:
            histograms = {
                quantity: {
                    name: measure_histogram(torch.randn(10_000, generator=generator) * 10.0 ** -(place % 9))
                    for place, name in enumerate(names)
                }
                for quantity in ("gradient", "update", "weight")
            }
        yield StepRecord(
            step=(log + 1) * SCALARS_EVERY - 1,
            parameters=names,
            grad_norm=float(norms[0]),
            grad_norm_clipped=float(norms[1]),
            grad_max=float(norms[2]),
            clip_val=float(norms[3]),
            clip_rate=float(norms[4]),
            update_ratio=float(norms[5]),
            weight_norm=float(norms[6]),
            nonfinite_count=0,
            histograms=histograms,
        )


def weigh(histogram_logs: int) -> int:
    """Write a run's beginning, and return the size of its file in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = wandb.Settings(x_disable_stats=True, console="off")
        run = wandb.init(reinit="create_new", mode="offline", dir=folder, project="volume", settings=settings)
        board = LoggerCollection([WandbLogger(experiment=run)])
        for record in records(histogram_logs):
            board.log_batch([record], [(True,) * TENSORS])
        file = Path(run.settings.sync_file)
        run.finish()
        return file.stat().st_size


def main() -> None:
    """Print the volume of a day."""
    os.environ["WANDB_SILENT"] = "true"
    few, many = (weigh(part) for part in PARTS)
    each = (many - few) / (PARTS[1] - PARTS[0])
    total = few + each * (STEPS // HISTOGRAMS_EVERY - PARTS[0])
    print(
        f"W&B, {STEPS:,} steps, {TENSORS} tensors, scalars every {SCALARS_EVERY}, histograms every {HISTOGRAMS_EVERY}:"
    )
    print(f"{total / 1e6:.0f} MB in all, of which {few / 1e6:.1f} MB for the first {PARTS[0]} logs of histograms")


if __name__ == "__main__":
    main()
