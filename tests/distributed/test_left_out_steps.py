"""A step of a Trainer's manual optimization that one of two processes leaves out, and the other makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_ranks

SCRIPT = """
import logging
import time

import pytorch_lightning as pl
import torch
from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.probe import QUIET

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("lightning_gradexplode").addHandler(handler)


class Manual(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(4, 1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(24, 4), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.layer(batch).square().mean()
        if batch_idx == 3 and self.global_rank == 1:
            loss = loss * float("nan")
        optimizer.zero_grad()
        self.manual_backward(loss)
        if torch.isfinite(loss):
            optimizer.step()


monitor = GradientExplosionMonitor(report=False)
settings = {**QUIET, "max_steps": -1, "max_epochs": 1, "strategy": "ddp", "devices": 2}
began = time.monotonic()
pl.Trainer(**settings, logger=False, callbacks=[monitor]).fit(Manual())
assert time.monotonic() - began < 25, "a process has waited for the other"
assert any("rank 1 leaves out the optimizer step of its batch 3, with a loss of nan" in line for line in lines), lines
"""


@pytest.mark.distributed
def test_the_monitors_of_both_processes_end_at_once(tmp_path: Path) -> None:
    """Neither waits for the other, and a line names the process, its batch and its loss."""
    script = tmp_path / "manual.py"
    script.write_text(SCRIPT)
    run_ranks(script, [], processes=2)
