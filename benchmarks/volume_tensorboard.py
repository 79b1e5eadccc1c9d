"""The volume of TensorBoard's event files for a day of training: 200,000 steps of a model of 300 tensors.

The records of `benchmarks.volume_wandb` are written to an event file, whose size is extrapolated.

    python -m benchmarks.volume_tensorboard
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.volume_wandb import HISTOGRAMS_EVERY, PARTS, SCALARS_EVERY, STEPS, TENSORS, records
from lightning_gradexplode.loggers import LoggerCollection


def weigh(histogram_logs: int) -> int:
    """Write a run's beginning, and return the size of its event file in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        board = LoggerCollection([logger])
        for record in records(histogram_logs):
            board.log_batch([record], [(True,) * TENSORS])
        logger.finalize("success")
        return sum(path.stat().st_size for path in Path(logger.log_dir).glob("*tfevents*"))


def main() -> None:
    """Print the volume of a day."""
    few, many = (weigh(part) for part in PARTS)
    each = (many - few) / (PARTS[1] - PARTS[0])
    total = few + each * (STEPS // HISTOGRAMS_EVERY - PARTS[0])
    print(f"TensorBoard, {STEPS:,} steps, {TENSORS} tensors, scalars every {SCALARS_EVERY}, histograms every ", end="")
    print(f"{HISTOGRAMS_EVERY}: {total / 1e6:.0f} MB, {each / 4 / TENSORS:.0f} bytes a histogram")


if __name__ == "__main__":
    main()
