"""Checkpoints of earlier versions of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import ExplodingRegression, RecordingLogger
from tests.runs.probe import QUIET, resuming

CHECKPOINT = Path(__file__).parent.parent / "data" / "version-0.1.0.ckpt"
"""Written by version 0.1.0 after 12 steps, with ``clip="auto"`` and ``on_explosion=["skip", "rollback"]``."""


class Network(ExplodingRegression, pl.LightningModule):
    """The network of the checkpoint."""


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_of_the_first_version_loads(caplog: pytest.LogCaptureFixture) -> None:
    """The fit goes on with its findings, step counts and clipping; each part that does not fit is one line."""
    monitor = GradientExplosionMonitor(clip="auto", on_explosion=["skip", "rollback"], report=False)
    logger = RecordingLogger()
    trainer = pl.Trainer(**{**QUIET, "max_steps": 15, "log_every_n_steps": 1}, logger=logger, callbacks=[monitor])
    trainer.fit(Network(), **resuming(str(CHECKPOINT)))
    assert trainer.global_step == 15
    assert not monitor.failed
    assert monitor.last is not None
    assert monitor.state_dict()["optimizers"][0]["steps"] == 15
    assert len(logger.values("gradexplode/clip_val")) == 3
    ours = [record.getMessage() for record in caplog.records if "checkpoint's state" in record.getMessage()]
    assert all("\n" not in line for line in ours)
