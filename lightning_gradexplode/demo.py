"""A run whose learning rate rises until it is too high, and the same run with clipping."""

from __future__ import annotations

import importlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor

STEPS = 120
FIRST_RATE, LAST_RATE = 0.01, 1.0
"""The learning rate rises linearly from the first step to the last; it is too high about halfway."""


class RisingRate(nn.Module):
    """A small regression; each batch contains all data."""

    def __init__(self) -> None:
        super().__init__()
        hidden, output = nn.Linear(8, 32), nn.Linear(32, 1)
        for layer in (hidden, output):
            nn.init.kaiming_normal_(layer.weight)
        self.network = nn.Sequential(hidden, nn.Tanh(), output)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(self.network(inputs), targets)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build plain gradient descent with a rate that rises."""
        optimizer = torch.optim.SGD(self.parameters(), lr=LAST_RATE)
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, FIRST_RATE / LAST_RATE, 1.0, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return one batch."""
        random = torch.Generator().manual_seed(1)
        inputs = torch.randn(256, 8, generator=random)
        targets = torch.tanh(inputs[:, :1] * inputs[:, 1:2]) + torch.sin(inputs[:, 2:3])
        return DataLoader(TensorDataset(inputs, targets), batch_size=256)


def run(folder: Path) -> Iterator[str]:
    """Train twice, and return the results as lines of text.

    Args:
        folder: Folder for TensorBoard's event files and the reports.
    """
    results, page = {}, None
    for name, clip in (("without clipping", None), ('clip="auto"', "auto")):
        yield f"{name}: {STEPS} steps, learning rate from {FIRST_RATE:g} to {LAST_RATE:g}"
        results[name], found = _train(folder, name.split("=")[0].replace(" ", "-"), clip)
        page = page or found
    rows = dict.fromkeys(row for result in results.values() for row in result)
    yield f"{'':26}" + "".join(f"{name:20}" for name in results)
    for row in rows:
        yield f"{row:26}" + "".join(f"{result[row]:20}" for result in results.values())
    yield f"Report: {page}" if page else "No report was written."
    yield f"TensorBoard: tensorboard --logdir {folder}"


def _train(folder: Path, name: str, clip: Any) -> tuple[dict[str, str], Path | None]:
    """Return the results of a run by name, and the page of its report."""
    namespace = _namespace()
    loggers = importlib.import_module(f"{namespace.__name__}.loggers")
    network = type("Network", (RisingRate, namespace.LightningModule), {})
    monitor, norms = GradientExplosionMonitor(clip=clip, log_every_n_steps=1), []
    namespace.seed_everything(0, verbose=False)
    with _quiet(namespace), _progress() as advance:

        def step_ended(callback: Any, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            module.log_dict(
                {"train_loss": outputs["loss"], "learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
            )
            norms.append(float(trainer.callback_metrics["gradexplode/grad_norm"]))
            advance()

        trainer = namespace.Trainer(
            max_steps=STEPS,
            logger=loggers.TensorBoardLogger(folder, name=name),
            callbacks=[monitor, type("Ticks", (namespace.Callback,), {"on_train_batch_end": step_ended})()],
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(network())
    critical = [finding.step for finding in monitor.findings if finding.severity.name == "CRITICAL"]
    loss = monitor.last.loss if monitor.last is not None else None
    result = {
        "first critical finding": f"step {critical[0]}" if critical else "none",
        "largest gradient norm": f"{max((one for one in norms if math.isfinite(one)), default=math.nan):.3g}",
        "last loss": "" if loss is None else f"{loss:.3g}",
    }
    return result, monitor.report_folder and monitor.report_folder / "index.html"


@contextmanager
def _quiet(namespace: Any) -> Iterator[None]:
    """Silence Lightning's messages and warnings, which are about the small size of the run."""
    messages = logging.getLogger(f"{namespace.__name__}.utilities.rank_zero")
    level = messages.level
    messages.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        messages.setLevel(level)


@contextmanager
def _progress() -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal if ``rich`` is installed, and return a function that advances it by a step."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=STEPS)
        yield lambda: bar.advance(task)


def _namespace() -> Any:
    """Return the installed namespace of Lightning: ``lightning.pytorch`` or ``pytorch_lightning``."""
    try:
        return importlib.import_module("lightning.pytorch")
    except ModuleNotFoundError:
        return importlib.import_module("pytorch_lightning")
