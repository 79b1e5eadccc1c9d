"""Memory, time and output of a long run: ``python -m benchmarks.long_run --steps 200000``, through a real Trainer.

A small network is trained with ``clip="auto"``, ``on_explosion=["skip", "rollback"]``, TensorBoard and reports. The
loss of every 997th batch is NaN, so that incidents begin and end, updates are skipped, and findings reach their limit.
For each tenth of the run the table has the memory of the process, the median and the mean time of a step, its
processor time, the size of the monitor's state in a checkpoint, its findings, and the lines that it logged. ``--plain``
trains without the monitor, to compare with.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor

BAD_EVERY = 997
"""Number of batches from one with a NaN loss to the next."""
BATCHES = 1000
"""Number of batches of an epoch."""


class Regression(pl.LightningModule):
    """A small network whose loss is NaN at every `BAD_EVERY`-th batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        self.seen += 1
        loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
        return loss * float("nan") if self.seen % BAD_EVERY == 0 else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer with a state."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of four."""
        inputs = torch.randn(4 * BATCHES, 8, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)


@dataclass(frozen=True, slots=True)
class Tenth:
    """One tenth of the run.

    Args:
        step: Number of steps at its end.
        megabytes: Resident memory at its end.
        median: Median time of a step, in microseconds.
        mean: Mean time of a step, in microseconds.
        processor: Mean processor time of a step, in microseconds, which other programs of the machine change less.
        state: Size of the monitor's state as a checkpoint holds it, in kilobytes.
        findings: Number of findings that are kept.
        lines: Number of lines logged so far.
    """

    step: int
    megabytes: float
    median: float
    mean: float
    processor: float
    state: float
    findings: int
    lines: int


class LineCount(logging.Handler):
    """Counts log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        self.lines += 1


class Measurements(pl.Callback):
    """Measures each tenth of a run.

    Args:
        steps: Number of steps of the run.
        monitor: The monitor, None in a run without one.
        lines: Count of log lines.
    """

    def __init__(self, steps: int, monitor: GradientExplosionMonitor | None, lines: LineCount) -> None:
        self.tenths: list[Tenth] = []
        self._size = max(steps // 10, 1)
        self._monitor = monitor
        self._lines = lines
        self._times = torch.zeros(self._size, dtype=torch.float64)
        self._steps = 0
        self._before = self._processor = 0.0

    def on_train_start(self, *arguments: Any) -> None:
        """Begin to measure."""
        self._restart()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Measure a step."""
        now = time.perf_counter()
        self._times[self._steps % self._size] = now - self._before
        self._before = now
        self._steps += 1
        if self._steps % self._size == 0:
            self._finish_tenth()

    def _restart(self) -> None:
        self._processor, self._before = time.process_time(), time.perf_counter()

    def _finish_tenth(self) -> None:
        processor = (time.process_time() - self._processor) / self._size
        times = self._times.tolist()
        gc.collect()
        findings = 0 if self._monitor is None else len(self._monitor.findings)
        tenth = Tenth(
            self._steps,
            resident_megabytes(),
            1e6 * statistics.median(times),
            1e6 * statistics.fmean(times),
            1e6 * processor,
            state_kilobytes(self._monitor),
            findings,
            self._lines.lines,
        )
        self.tenths.append(tenth)
        print(row(tenth), flush=True)
        self._restart()


def resident_megabytes() -> float:
    """Return the resident memory of this process in MB; NaN if the system does not provide it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 2**20


def state_kilobytes(monitor: GradientExplosionMonitor | None) -> float:
    """Return the size of the monitor's state in a checkpoint."""
    if monitor is None:
        return 0.0
    buffer = io.BytesIO()
    torch.save(monitor.state_dict(), buffer)
    return buffer.tell() / 1024


HEAD = "| steps | memory, MB | median, us | mean, us | processor, us | state, kB | findings | log lines |"


def row(one: Tenth) -> str:
    """Return a tenth as a line of the table."""
    return (
        f"| {one.step} | {one.megabytes:.1f} | {one.median:.0f} | {one.mean:.0f} | {one.processor:.0f} "
        f"| {one.state:.0f} | {one.findings} | {one.lines} |"
    )


def train(steps: int, plain: bool, folder: str) -> list[Tenth]:
    """Train a run, print a line for each tenth of it, and return them."""
    torch.set_num_threads(1)
    lines = LineCount()
    log = logging.getLogger("lightning_gradexplode")
    log.addHandler(lines)
    monitor = None
    if not plain:
        monitor = GradientExplosionMonitor(clip="auto", on_explosion=["skip", "rollback"])
    measurements = Measurements(steps, monitor, lines)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[measurements] if monitor is None else [monitor, measurements],
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Regression())
    finally:
        log.removeHandler(lines)
    return measurements.tenths


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--plain", action="store_true", help="train without the monitor")
    options = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, Lightning {version('pytorch-lightning')}, Python {platform.python_version()}\n")
    print(f"{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}")
    with tempfile.TemporaryDirectory() as folder:
        train(options.steps, options.plain, folder)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"\nFiles of the run: {size / 2**20:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
