"""What measuring costs on a GPU: ``python -m benchmarks.overhead --device cuda``. It was never run on one so far.

Transformers of 100 million and 1 billion parameters are trained in each of several ways, each in a run of its own. Time
is taken with CUDA events from the start of a batch to the next, so that work of the host that runs beside the GPU's
does not count. Around calm steps of the monitor ``torch.cuda.set_sync_debug_mode("error")`` is on: a call that waits
for the GPU then raises, which switches the monitor off, and the table says so.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from rich.console import Console
from rich.table import Table

from benchmarks.overhead_models import Model, transformer
from lightning_gradexplode import GradientExplosionMonitor

SIZES = {"100M parameters": 1184, "1B parameters": 3840}
"""Widths of the transformers."""
WARM = 20
"""Steps before anything is timed; the monitor's first steps wait."""


class EventTimes(pl.Callback):
    """Times each step with CUDA events, which are read after the run.

    Args:
        monitor: The monitor whose calm steps must not wait, None without one.
        calm: Whether waits in its hooks are errors.
    """

    def __init__(self, monitor: GradientExplosionMonitor | None, calm: bool) -> None:
        self.events: list[torch.cuda.Event] = []
        if monitor is not None and calm:
            for hook in ("on_before_backward", "on_after_backward", "on_before_optimizer_step"):
                setattr(monitor, hook, self._without_waits(getattr(monitor, hook)))

    def _without_waits(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.events) <= WARM:
                return hook(*args, **kwargs)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return hook(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Record an event, and measure memory from the first timed step on."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self.events.append(event)
        if len(self.events) == WARM:
            torch.cuda.reset_peak_memory_stats()

    @property
    def milliseconds(self) -> list[float]:
        """The time of each step, but for the first ones."""
        torch.cuda.synchronize()
        pairs = zip(self.events[WARM:], self.events[WARM + 1 :], strict=False)
        return [one.elapsed_time(other) for one, other in pairs]


def monitors() -> dict[str, tuple[dict[str, Any] | None, bool]]:
    """Return the arguments of the monitor in each run (None without one), and whether its steps are calm ones."""
    calm = {"log_every_n_steps": 0, "histogram_every_n_steps": 0}
    return {
        "no callback": (None, False),
        "monitor, defaults": ({}, False),
        "monitor, calm steps": (calm, True),
        "monitor, clip=1.0, calm steps": ({**calm, "clip": 1.0}, True),
        'monitor, clip="auto", calm steps': ({**calm, "clip": "auto"}, False),
        "monitor, histograms at every step": ({"log_every_n_steps": 1, "histogram_every_n_steps": 1}, False),
    }


def fit(model: Model, steps: int, monitor: GradientExplosionMonitor | None, calm: bool, clip: float | None) -> Any:
    """Train, and return the times of the steps in milliseconds and the peak of memory in bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    times = EventTimes(monitor, calm)
    pl.Trainer(
        max_epochs=1,
        accelerator="cuda",
        devices=1,
        callbacks=[times] if monitor is None else [times, monitor],
        logger=False,
        gradient_clip_val=clip,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, model.batches(steps))
    return times.milliseconds, torch.cuda.max_memory_allocated()


def add_row(table: Table, name: str, medians: list[float], milliseconds: list[float], memory: int) -> None:
    """Add a run to a table, compared with the first run of it."""
    medians.append(statistics.median(milliseconds))
    share = f"{medians[-1] / medians[0] - 1:+.2%}"
    table.add_row(name, f"{medians[-1]:.2f}", share, f"{memory / 2**30:.2f} GiB")


def measure(console: Console, steps: int) -> None:
    """Print a table for each size."""
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for size, width in SIZES.items():
        table = Table("ms per step", "median", "over no callback", "peak memory", title=size)
        medians: list[float] = []
        for name, (arguments, calm) in monitors().items():
            monitor = None if arguments is None else GradientExplosionMonitor(report=False, **arguments)
            add_row(table, name, medians, *fit(transformer(width), steps, monitor, calm, None))
            if monitor is not None and monitor.failed:
                table.add_row(f"[red]{name}: the monitor is off, see the log", "", "", "")
        add_row(table, "Trainer(gradient_clip_val=1.0)", medians, *fit(transformer(width), steps, None, False, 1.0))
        watched = transformer(width)
        run = wandb.init(mode="offline", project="overhead")
        run.watch(watched, log_freq=1)
        add_row(table, "wandb.watch(log_freq=1)", medians, *fit(watched, steps, None, False, None))
        run.finish()
        console.print(table)
