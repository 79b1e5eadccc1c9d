"""The time that the monitor adds on a GPU: ``python -m benchmarks.overhead --device cuda``.

Transformers of 100 million and 1 billion parameters are trained in each of several ways, each in a run of its own, in
bfloat16 mixed precision, with batches of 4096 positions. Time is taken with CUDA events from the start of a batch to
the next, so that work of the host that runs beside the GPU's does not count. Around calm steps of the monitor
``torch.cuda.set_sync_debug_mode("error")`` is on: a call that waits for the GPU then raises, which switches the monitor
off, and the table says so. A further table compares kernels that count a histogram.

With the default number of steps it is made to take less than five minutes, needs no network and 40 GB of memory; a size
that does not fit is left out. ``cpu`` as the device is for tests of this file.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.overhead_models import Model, transformer
from lightning_gradexplode import GradientExplosionMonitor

SIZES = {"100M parameters": 1184, "1B parameters": 3840}
"""Widths of the transformers."""
POSITIONS = (8, 512)
"""Sequences in a batch, and their length."""
STEPS = 100
"""Steps that are timed."""
WARM = 20
"""Steps before the timed ones; the monitor's first steps synchronize with the device."""
COUNTED = 1 << 26
"""Elements whose histogram is counted."""


class StepTimes(pl.Callback):
    """Times each step, on a GPU with CUDA events, which are read after the run.

    Args:
        device: The device.
        monitor: The monitor whose calm steps must not wait, None without one.
    """

    def __init__(self, device: str, monitor: GradientExplosionMonitor | None) -> None:
        self.is_gpu = device == "cuda"
        self.events: list[Any] = []
        if monitor is not None:
            for hook in ("on_before_backward", "on_after_backward", "on_before_optimizer_step"):
                setattr(monitor, hook, self._without_waits(getattr(monitor, hook)))

    def _without_waits(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.is_gpu or len(self.events) <= WARM:
                return hook(*args, **kwargs)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return hook(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Record an event, and measure memory from the first timed step on."""
        self.events.append(self._now())
        if self.is_gpu and len(self.events) == WARM:
            torch.cuda.reset_peak_memory_stats()

    def _now(self) -> Any:
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @property
    def milliseconds(self) -> list[float]:
        """The time of each step after the first ones."""
        pairs = list(zip(self.events[WARM:], self.events[WARM + 1 :], strict=False))
        if not self.is_gpu:
            return [1e3 * (other - one) for one, other in pairs]
        torch.cuda.synchronize()
        return [one.elapsed_time(other) for one, other in pairs]


def monitors() -> dict[str, tuple[dict[str, Any], bool]]:
    """Return the arguments of the monitor in each run, and whether a wait in its hooks is an error."""
    calm = {"log_every_n_steps": 0, "histogram_every_n_steps": 0}
    return {
        "monitor, defaults": ({}, False),
        "monitor, calm steps": (calm, True),
        "monitor, clip=1.0, calm steps": ({**calm, "clip": 1.0}, True),
        'monitor, clip="auto", calm steps': ({**calm, "clip": "auto"}, False),
        "monitor, logged at every step": ({"log_every_n_steps": 1, "histogram_every_n_steps": 0}, False),
        "monitor, histograms at every step": ({"log_every_n_steps": 1, "histogram_every_n_steps": 1}, False),
    }


class Runs:
    """Runs of one model, which are rows of one table.

    Args:
        model: The model, which goes on from run to run.
        device: Where it is trained.
        positions: Sequences in a batch, and their length.
        table: The table.
    """

    def __init__(self, model: Model, device: str, positions: tuple[int, int], table: Table) -> None:
        self.model, self.device, self.table = model, device, table
        self.batch = torch.randn(*positions, model.width, device=device)
        self.median: float | None = None

    def add(self, name: str, steps: int, clip: float | None = None, **monitor: Any) -> None:
        """Train, and add a row, compared with the first one.

        Args:
            name: What is timed.
            steps: Number of timed steps.
            clip: The trainer's clip value.
            **monitor: ``arguments`` and ``is_calm`` of the monitor; none without one.
        """
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        own = GradientExplosionMonitor(report=False, **monitor["arguments"]) if monitor else None
        times = StepTimes(self.device, own if monitor and monitor["is_calm"] else None)
        pl.Trainer(
            max_epochs=1,
            accelerator=self.device,
            devices=1,
            precision="bf16-mixed",
            callbacks=[times] if own is None else [times, own],
            logger=False,
            gradient_clip_val=clip,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(self.model, DataLoader([[self.batch]] * (WARM + steps + 1), batch_size=None))  # type: ignore[arg-type]
        milliseconds = times.milliseconds
        middle, mean = statistics.median(milliseconds), statistics.fmean(milliseconds)
        self.median = middle if self.median is None else self.median
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else float("nan")
        share = f"{middle / self.median - 1:+.2%}"
        self.table.add_row(name, f"{middle:.2f}", f"{mean:.2f}", share, f"{memory:.2f} GiB")
        if own is not None and own.failed:
            self.table.add_row(f"[red]{name}: the monitor is off, see the log", "", "", "", "")

    def add_all(self, steps: int) -> None:
        """Add all rows."""
        self.add("no callback", steps)
        for name, (arguments, is_calm) in monitors().items():
            self.add(name, steps if "every step" not in name else steps // 4, arguments=arguments, is_calm=is_calm)
        self.add("Trainer(gradient_clip_val=1.0)", steps, clip=1.0)
        self.add("no callback, again", steps)
        try:
            import wandb
        except ImportError as error:
            self.table.add_row(f"wandb.watch(log_freq=1): not measured, {error}")
            return
        with tempfile.TemporaryDirectory() as folder, wandb.init(mode="offline", project="overhead", dir=folder) as run:
            run.watch(self.model, log_freq=1)
            self.add("wandb.watch(log_freq=1)", steps // 4)
            run.unwatch(self.model)


def counters() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return kernels that count the 2048 codes of float32 elements, see `lightning_gradexplode.measure.histograms`."""

    def codes(values: Tensor) -> Tensor:
        found = values.view(torch.int32) >> 21
        found &= 2047
        return found

    one = torch.ones((), dtype=torch.int64)
    return {
        "histc of codes": lambda values: torch.histc(codes(values).float(), 2048, 0, 2048),
        "scatter_add_ of codes": lambda values: torch.zeros(2048, dtype=torch.int64, device=values.device).scatter_add_(
            0, codes(values).long(), one.to(values.device).expand(len(values))
        ),
        "bincount of codes (waits)": lambda values: torch.bincount(codes(values), minlength=2048),
    }


def count(console: Console, device: str, elements: int, turns: int = 5) -> None:
    """Print a table of the kernels that count."""
    table = Table("histogram of normal numbers", "ms", "bytes an element", title=f"{elements / 1e6:.0f}M elements")
    pieces = torch.split(torch.randn(elements, device=device), 1 << 22)
    for name, kernel in counters().items():
        milliseconds = []
        for _ in range(turns):
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            began = time.perf_counter()
            for piece in pieces:
                kernel(piece)
            if device == "cuda":
                torch.cuda.synchronize()
            milliseconds.append(1e3 * (time.perf_counter() - began))
        used = (torch.cuda.max_memory_allocated() - before) / len(pieces[0]) if device == "cuda" else float("nan")
        table.add_row(name, f"{min(milliseconds):.2f}", f"{used:.1f}")
    console.print(table)


def measure(
    console: Console,
    steps: int = STEPS,
    device: str = "cuda",
    sizes: Mapping[str, int] = SIZES,
    positions: tuple[int, int] = POSITIONS,
    elements: int = COUNTED,
) -> None:
    """Print a table for each size, and one of the kernels that count histograms."""
    where = torch.cuda.get_device_name() if device == "cuda" else device
    console.print(f"{where}, torch {torch.__version__}, batches of {positions[0]} x {positions[1]} positions")
    columns: Sequence[str] = ("median", "mean", "median over no callback", "peak memory")
    for size, width in sizes.items():
        table = Table("ms per step", *columns, title=size)
        began = time.perf_counter()
        with suppress(torch.OutOfMemoryError):
            with torch.device(device):
                model = transformer(width)
            Runs(model, device, positions, table).add_all(steps)
        console.print(table)
        console.print(f"{time.perf_counter() - began:.0f} s")
    count(console, device, elements)
