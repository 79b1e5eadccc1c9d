"""What measuring costs per optimizer step: ``python -m benchmarks.overhead`` prints a table for each of three models.

Everything is timed side by side in one run: at each step every candidate does its work on the same gradients, right
after the backward pass, in turn. Times drift from machine to machine and from minute to minute; the ratios to torch's
``clip_grad_norm_`` are what to look at.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import grad_norm
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_gradexplode import GradientExplosionMonitor

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "_before_step",
    "_after_step",
    "on_train_batch_end",
)
WARM_UP = 10


class Timings(dict[str, list[float]]):
    """Seconds per step, by what was done."""

    def add(self, name: str, seconds: float) -> None:
        """Note the seconds of one step."""
        self.setdefault(name, []).append(seconds)

    def time(self, name: str, work: Callable[[], Any]) -> None:
        """Do some work and note how long it took."""
        begin = time.perf_counter()
        work()
        self.add(name, time.perf_counter() - begin)


class TimedMonitor(GradientExplosionMonitor):
    """The monitor, all its hooks of a step timed together."""

    def __init__(self, timings: Timings, name: str, **arguments: Any) -> None:
        super().__init__(report=False, **arguments)
        self.timings, self.name, self.spent = timings, name, 0.0
        for hook in HOOKS:
            setattr(self, hook, self._timed(getattr(self, hook), last=hook == "on_train_batch_end"))

    @property
    def state_key(self) -> str:
        """Tell several monitors of one run apart."""
        return self.name

    def _timed(self, hook: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = hook(*args, **kwargs)
            self.spent += time.perf_counter() - begin
            if last:
                self.timings.add(self.name, self.spent)
                self.spent = 0.0
            return result

        return timed


class Others(pl.Callback):
    """What else people do with gradients, each timed at each step."""

    def __init__(self, timings: Timings, folder: str) -> None:
        self.timings = timings
        self.writer = SummaryWriter(folder)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Do each on the gradients that the optimizer is about to get; none of it changes them."""
        parameters = list(module.parameters())
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        self.timings.time("one read (aminmax)", lambda: [torch.aminmax(one) for one in gradients.values()])
        self.timings.time("clip_grad_norm_", lambda: nn.utils.clip_grad_norm_(parameters, 1e9))
        self.timings.time("grad_norm + log_dict", lambda: module.log_dict(grad_norm(module, norm_type=2)))
        if trainer.global_step % 10 == 0:
            self.timings.time("add_histogram", lambda: self._histograms(gradients, trainer.global_step))

    def _histograms(self, gradients: dict[str, torch.Tensor], step: int) -> None:
        for name, gradient in gradients.items():
            self.writer.add_histogram(name, gradient, step)


class Model(pl.LightningModule):
    """A stack of layers, trained to give zeros."""

    def __init__(self, layers: list[nn.Module], width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.width = width

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Add each layer's output to its input."""
        (x,) = batch
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        return x.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give AdamW with a learning rate that changes little."""
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def models() -> dict[str, Callable[[], Model]]:
    """Give the models by name: one of many weights, one of few, and one of many tensors."""
    return {
        "transformer": lambda: Model(
            [nn.TransformerEncoderLayer(320, 8, 1280, dropout=0.0, batch_first=True) for _ in range(6)], 320
        ),
        "narrow MLP": lambda: Model([nn.Linear(32, 32) for _ in range(25)], 32),
        "1000 tensors": lambda: Model([nn.Linear(64, 64) for _ in range(500)], 64),
    }


def measure(model: Model, steps: int) -> Timings:
    """Train a model with everything timed at every step."""
    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            TimedMonitor(timings, "monitor, defaults, log every 10th", log_every_n_steps=10),
            TimedMonitor(timings, "monitor, histograms at every step", log_every_n_steps=1, histogram_every_n_steps=1),
            Others(timings, folder),
        ]
        data = torch.randn(steps * 4, *((16,) if model.width == 320 else ()), model.width)
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=pl.loggers.TensorBoardLogger(folder),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(TensorDataset(data), batch_size=4))
    return timings


def show(name: str, model: Model, timings: Timings, console: Console) -> None:
    """Print one model's table."""
    tensors = list(model.parameters())
    size = sum(tensor.numel() for tensor in tensors) / 1e6
    table = Table("per optimizer step", title=f"{name}: {size:.2f}M parameters in {len(tensors)} tensors")
    for column in ("median ms", "mean ms", "median / clip", "mean / clip"):
        table.add_column(column, justify="right")
    clip = timings["clip_grad_norm_"][WARM_UP:]
    for what, seconds in timings.items():
        kept = seconds[WARM_UP:] or seconds
        middle, mean = statistics.median(kept), statistics.fmean(kept)
        table.add_row(
            what,
            f"{middle * 1e3:.3f}",
            f"{mean * 1e3:.3f}",
            f"{middle / statistics.median(clip):.2f}",
            f"{mean / statistics.fmean(clip):.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", nargs="*", default=list(models()), choices=list(models()))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for namespace in ("pytorch_lightning", "lightning_gradexplode"):
        logging.getLogger(namespace).setLevel(logging.ERROR)
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    )
    for name in arguments.models:
        model = models()[name]()
        show(name, model, measure(model, arguments.steps), console)


if __name__ == "__main__":
    main()
