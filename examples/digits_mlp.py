"""A deep tanh network on handwritten digits, logged to TensorBoard and to Weights & Biases.

The weights of twenty tanh layers are drawn a little too large, so that the error gradient grows from each layer to the
one below: at the first step it is more than ten times as large in the first layer as in the last. At this learning
rate the updates drive the units into saturation, and the loss rises far above where it started. The monitor writes to
every logger of the trainer, and with ``on_explosion="stop"`` it ends the run and holds back the update that would have
come next. W&B runs offline, without an account.

Run: ``python examples/digits_mlp.py``. It needs ``pip install rich scikit-learn wandb``.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor

LAYERS = 20
WIDTH = 64
LOGS = Path("logs/digits")


class DeepTanhNetwork(pl.LightningModule):
    """Reads a digit from its 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
        for layer in hidden:
            nn.init.xavier_normal_(layer.weight, gain=2.0)  # 5/3 is usual for tanh
        self.hidden = nn.Sequential(*(part for layer in hidden for part in (layer, nn.Tanh())))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the scores of the ten digits."""
        scores: Tensor = self.head(self.hidden(pixels))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        pixels, digits = batch
        loss = nn.functional.cross_entropy(self(pixels), digits)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum, at a learning rate that is too high."""
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def digits() -> DataLoader[Any]:
    """Return the 1797 digits that ship with scikit-learn."""
    data = load_digits()
    pixels = torch.tensor(data.data / 16, dtype=torch.float32)
    return DataLoader(TensorDataset(pixels, torch.tensor(data.target)), batch_size=64, shuffle=True)


def main() -> tuple[pl.Trainer, GradientExplosionMonitor]:
    """Train under watch until the monitor stops it."""
    torch.set_num_threads(1)  # the fastest for a network this small
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    console = Console(highlight=False)

    console.print(f"\n[bold]{LAYERS} tanh layers[/bold], stopped when the run explodes\n")
    pl.seed_everything(0, verbose=False)
    monitor = GradientExplosionMonitor(
        on_explosion="stop", per_parameter=True, include=["*.weight"], histogram_every_n_steps=5
    )
    trainer = pl.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=[
            TensorBoardLogger(LOGS, name="", version="tensorboard"),
            WandbLogger(project="gradexplode-digits", save_dir=LOGS),
        ],
        callbacks=[monitor],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(DeepTanhNetwork(), digits())
    for logger in trainer.loggers:
        logger.finalize("success")
    wandb.finish()  # or else W&B would go on with this run in whatever comes next

    table = Table("step", "severity", "sign", "where", "value", "limit", box=SIMPLE_HEAD)
    for found in monitor.findings:
        numbers = (f"{found.value:.3g}", f"{found.limit:.3g}")
        table.add_row(str(found.step), found.severity.name, found.sign, found.where, *numbers)
    console.print(table)
    console.print(f"TensorBoard: [bold]tensorboard --logdir {LOGS / 'tensorboard'}[/bold]")
    console.print(f"W&B: [bold]wandb sync {LOGS}/wandb/offline-run-*[/bold] (needs an account)\n", soft_wrap=True)
    return trainer, monitor


if __name__ == "__main__":
    main()
