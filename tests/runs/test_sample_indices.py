"""The samples that a diagnosis names, in whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor

BAD = 22
"""Index of the sample that is NaN."""


class Regression(pl.LightningModule):
    """A linear regression."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def samples(bad: int | None) -> DataLoader[Any]:
    """Load 40 samples in their order, one of which may be NaN."""
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    if bad is not None:
        inputs[bad, 1] = math.nan
    return DataLoader(TensorDataset(inputs, inputs.nan_to_num().sum(dim=1, keepdim=True)), batch_size=4)


def fit(folder: Path, bad: int | None, steps: int, resume: Path | None = None) -> tuple[pl.Trainer, str]:
    """Train, and return the trainer with all sentences of the diagnosis."""
    monitor = GradientExplosionMonitor(report=False)
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[monitor],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Regression(), samples(bad), ckpt_path=resume)
    diagnosis = monitor.diagnosis()
    return trainer, "" if diagnosis is None else diagnosis.markdown()


def test_the_sample_that_is_nan_is_named(tmp_path: Path) -> None:
    """Its index in the dataset is that of the row that is NaN, of a sequential sampler."""
    _, said = fit(tmp_path, BAD, 10)
    assert f"index {BAD}" in said


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint:UserWarning")
def test_no_sample_is_named_where_a_run_goes_on_within_an_epoch(tmp_path: Path) -> None:
    """The loader begins with its first samples again, and so the batch's index says nothing about them."""
    trainer, _ = fit(tmp_path, None, 3)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    _, said = fit(tmp_path, 6, 6, tmp_path / "middle.ckpt")
    assert "row 2" in said
    assert "In the dataset" not in said
