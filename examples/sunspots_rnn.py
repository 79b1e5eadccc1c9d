"""A recurrent network on 300 years of sunspots: it explodes, and does not with ``clip="auto"``.

A vanilla RNN reads 100 years of yearly sunspot numbers and forecasts, at each year, the next one. The learning rate
follows PyTorch's one-cycle schedule, whose peak is too high for it: plain SGD is calm at first, then its gradients grow
by twenty orders of magnitude, and the run is lost. The same run, from the same seed, learns with ``clip="auto"``.

Run: ``python examples/sunspots_rnn.py``. It needs ``pip install rich statsmodels``.
"""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pytorch_lightning as pl
import statsmodels.api as sm
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor, Severity

YEARS = 100  # that the network reads
UNSEEN = 50  # the last years, 1959 to 2008, are kept from the training
MAX_LEARNING_RATE = 0.8
LOGS = Path("logs/sunspots")


class SunspotForecaster(pl.LightningModule):
    """Forecasts next year's sunspot number from those of the years before."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(input_size=1, hidden_size=32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, years: Tensor) -> Tensor:
        """Return the forecast for the year after each year."""
        states, _ = self.rnn(years)
        forecast: Tensor = self.head(states)
        return forecast

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error over all years."""
        (window,) = batch
        loss = nn.functional.mse_loss(self(window[:, :-1]), window[:, 1:])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the error of each window's last year alone, which the training has not seen."""
        (window,) = batch
        self.log("val_loss", nn.functional.mse_loss(self(window[:, :-1])[:, -1], window[:, -1]))

    def configure_optimizers(self) -> Any:
        """Return plain SGD, with a learning rate that rises for half the run and falls for the other half."""
        optimizer = torch.optim.SGD(self.parameters(), lr=MAX_LEARNING_RATE)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, MAX_LEARNING_RATE, total_steps=steps, pct_start=0.5, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Probe(pl.Callback):
    """Tells when the run is really lost: an independent witness, which knows nothing of the monitor.

    Lost is a run whose loss or weights are no longer finite, or whose loss is ten times its start for five steps.
    """

    def __init__(self) -> None:
        self.lost_at: int | None = None
        self.losses: list[float] = []
        self.largest_norm = 0.0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Note the norm of the gradients, before any clipping."""
        squares = [p.grad.double().square().sum() for p in pl_module.parameters() if p.grad is not None]
        norm = math.sqrt(sum(map(float, squares)))
        self.largest_norm = max(self.largest_norm, norm if math.isfinite(norm) else 0.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the run by its loss and its weights."""
        self.losses.append(float(outputs["loss"]))
        finite = math.isfinite(self.losses[-1]) and all(bool(p.isfinite().all()) for p in pl_module.parameters())
        latest = self.losses[-5:]
        far_off = len(latest) == 5 and min(latest) > 10 * self.losses[0]
        if self.lost_at is None and (far_off or not finite):
            self.lost_at = len(self.losses) - 1


@dataclass(frozen=True)
class Outcome:
    """What came of one training: the step of the first CRITICAL finding, what the probe saw, the forecast's error."""

    alarm_at: int | None
    probe: Probe
    error: float


def sunspots() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the training and the validation windows of the yearly sunspot numbers from 1700 to 2008, in hundreds."""
    numbers = sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    series = torch.tensor(numbers, dtype=torch.float32) / 100
    windows = series.unfold(0, YEARS + 1, 1).unsqueeze(-1)
    training, validation = TensorDataset(windows[:-UNSEEN]), TensorDataset(windows[-UNSEEN:])
    return DataLoader(training, batch_size=32, shuffle=True), DataLoader(validation, batch_size=UNSEEN)


def train(version: str, clip: Literal["auto"] | None) -> Outcome:
    """Train once under watch."""
    shutil.rmtree(LOGS / version, ignore_errors=True)
    pl.seed_everything(0, verbose=False)
    monitor, probe = GradientExplosionMonitor(clip=clip, histogram_every_n_steps=5), Probe()
    trainer = pl.Trainer(
        max_epochs=40,
        accelerator="cpu",
        logger=TensorBoardLogger(LOGS.parent, LOGS.name, version),
        callbacks=[monitor, probe],
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(SunspotForecaster(), *sunspots())
    alarms = [finding.step for finding in monitor.findings if finding.severity is Severity.CRITICAL]
    error = 100 * math.sqrt(trainer.callback_metrics["val_loss"])
    return Outcome(alarms[0] if alarms else None, probe, error)


def comparison(*outcomes: Outcome) -> Table:
    """Lay both outcomes side by side."""
    table = Table("", "without clipping", 'clip="auto"', box=SIMPLE_HEAD)
    rows = {
        "alarm (first CRITICAL finding) at step": lambda one: str("never" if one.alarm_at is None else one.alarm_at),
        "run lost (independent probe) at step": lambda one: str(
            "never" if one.probe.lost_at is None else one.probe.lost_at
        ),
        "largest gradient norm before clipping": lambda one: f"{one.probe.largest_norm:.3g}",
        "loss at the first step": lambda one: f"{one.probe.losses[0]:.3f}",
        "final loss (mean of the last five steps)": lambda one: f"{fmean(one.probe.losses[-5:]):.3f}",
        "error of the forecasts for 1959 to 2008": lambda one: f"{one.error:.1f} sunspots",
    }
    for name, text in rows.items():
        table.add_row(name, *map(text, outcomes))
    return table


def main() -> tuple[Outcome, Outcome]:
    """Train without clipping, then with it, and compare."""
    torch.set_num_threads(1)  # the fastest for a network this small
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    console = Console(highlight=False)

    console.print(f"\n[bold]1. Without clipping[/bold], with a learning rate of up to {MAX_LEARNING_RATE}\n")
    lost = train("without_clipping", clip=None)
    console.print('\n[bold]2. With clip="auto"[/bold], from the same seed\n')
    rescued = train("with_clip_auto", clip="auto")

    console.print()
    console.print(comparison(lost, rescued))
    console.print(f"Logs: {LOGS.resolve()}", soft_wrap=True)
    console.print(f"To look at them: [bold]tensorboard --logdir {LOGS}[/bold]\n")
    return lost, rescued


if __name__ == "__main__":
    main()
