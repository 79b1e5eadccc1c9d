"""A run resumed from a checkpoint decides as one that was never stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gradexplode import Finding
from tests.runs.models import Manual, Regression
from tests.runs.probe import QUIET, Watched

STOP, END = 24, 48
"""Batches after which the checkpoint is written, and after which a run ends; 8 batches are an epoch."""


def saves(folder: Path) -> ModelCheckpoint:
    """Write ``step=<optimizer steps>.ckpt`` at the end of the epoch that ends with batch `STOP`."""
    return ModelCheckpoint(folder, "{step}", every_n_epochs=STOP // 8, save_top_k=-1)


def data(batches: int) -> tuple[Tensor, Tensor]:
    """Return the data of the batch after so many batches; Lightning repeats one if it resumes at an epoch's end."""
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(batches))
    return inputs, inputs.sum(dim=1, keepdim=True)


def drift(loss: Tensor, batches: int) -> Tensor:
    """Scale the loss so that it jumps at some batches and explodes near the end."""
    return loss * (60.0 if batches in (21, 30, 31, 35) else 1.0) * (4.0 ** max(batches - 40, 0))


class Drifts(Regression):
    """Its loss, without dropout, drifts with the number of steps."""

    def __init__(self, build: Any = None) -> None:
        super().__init__(build, layers=nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 1)))

    def loss(self, batch: Any) -> Tensor:
        """Return the drifting loss."""
        batches = self.trainer.global_step
        return drift(super().loss(data(batches)), batches)


class DriftsByHand(Manual):
    """The same in manual optimization with two optimizers."""

    def loss(self, batch: Any) -> Tensor:
        """Return the drifting loss."""
        batches = self.trainer.global_step // 2
        return drift(super().loss(data(batches)), batches)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Build an optimizer that has a state of its own."""
    return torch.optim.Adam(parameters, lr=0.01)


def run(module: pl.LightningModule, batches: int, folder: Path, resume: bool, clip: Any = None) -> Watched:
    """Train up to a number of batches, and leave a checkpoint on the way."""
    per_batch = 2 if isinstance(module, Manual) else 1
    return Watched(
        module,
        monitor={"clip": clip, "histogram_every_n_steps": 0, "per_parameter": False},
        callbacks=[saves(folder)],
        enable_checkpointing=True,
        max_steps=batches * per_batch,
        ckpt_path=str(folder / f"step={STOP * per_batch}.ckpt") if resume else None,
    )


def comparable(findings: list[Finding]) -> list[tuple[Any, ...]]:
    """Return what findings say; NaN is not equal to itself, so values go by their text.

    Indices of batches are left out: Lightning repeats a batch if it resumes at an epoch's end.
    """
    return [
        tuple(re.sub(r"batch \d+", "batch", str(one)) for one in finding.as_dict().values()) for finding in findings
    ]


@pytest.mark.parametrize("build", [Drifts, lambda: Drifts(adam), DriftsByHand], ids=["sgd", "adam", "manual"])
@pytest.mark.parametrize("clip", [None, "auto"])
def test_a_resumed_run_makes_the_same_decisions(build: Any, clip: Any, tmp_path: Path) -> None:
    """Findings, clip values and severities are the same, number by number."""
    whole = run(build(), END, tmp_path, False, clip)
    resumed = run(build(), END, tmp_path, True, clip)
    assert any(finding.step >= STOP for finding in whole.monitor.findings)
    assert comparable(resumed.monitor.findings) == comparable(whole.monitor.findings)
    rest = whole.logged[len(whole.logged) // 2 :]
    assert len(resumed.logged) == len(rest) >= END - STOP
    for name in ("grad_norm", "clip_val", "clip_rate", "severity", "update_ratio", "skipped_steps"):
        key = f"gradexplode/{name}"
        assert [str(one.get(key)) for one in resumed.logged] == [str(one.get(key)) for one in rest], name


def test_without_its_memory_a_run_decides_otherwise(tmp_path: Path) -> None:
    """The test above would see it if nothing went through the checkpoint."""
    whole = run(Drifts(), END, tmp_path, False)
    path = tmp_path / f"step={STOP}.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["callbacks"]["GradientExplosionMonitor"]
    torch.save(checkpoint, path)
    forgetful = run(Drifts(), END, tmp_path, True)
    assert comparable(forgetful.monitor.findings) != comparable(
        [finding for finding in whole.monitor.findings if finding.step >= STOP]
    )


def test_state_passes_the_strict_loader(tmp_path: Path) -> None:
    """A checkpoint with the monitor's state loads with ``weights_only=True``."""
    run(Drifts(adam), END, tmp_path, False, "auto")
    checkpoint = torch.load(tmp_path / f"step={STOP}.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["GradientExplosionMonitor"]


def test_a_checkpoint_without_the_monitor(tmp_path: Path) -> None:
    """A run can take up the monitor at a checkpoint that knows nothing of it."""
    settings = {**QUIET, "max_steps": STOP, "enable_checkpointing": True}
    pl.Trainer(**settings, logger=False, callbacks=[saves(tmp_path)]).fit(Drifts())
    resumed = run(Drifts(), STOP + 8, tmp_path, True)
    assert [step for step, _ in resumed.logger.values("gradexplode/grad_norm")] == list(range(STOP, STOP + 8))
