"""Strategies whose gradients cannot be seen: the monitor says so once, and stays out of the way."""

from __future__ import annotations

import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Regression
from tests.runs.probe import QUIET


class FSDPStrategy(SingleDeviceStrategy):
    """Has the name of the strategy that no CPU can run."""


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Likewise."""


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_gradients_that_are_hidden_are_refused_at_setup(
    strategy: type[SingleDeviceStrategy], caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the strategy and what to do; nothing is logged, and the training goes on."""
    monitor, recording, module = GradientExplosionMonitor(clip=1e-9, report=False), RecordingLogger(), Regression()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        trainer = pl.Trainer(
            **QUIET, logger=recording, log_every_n_steps=1, callbacks=[monitor], strategy=strategy(torch.device("cpu"))
        )
        trainer.fit(module)
    told = [record.getMessage() for record in caplog.records if record.name == "lightning_gradexplode"]
    assert len(told) == 1
    assert strategy.__name__ in told[0]
    assert not [metrics for _, metrics in recording.metrics if any("gradexplode" in name for name in metrics)]
    assert trainer.global_step == 5
    assert trainer.gradient_clip_val is None
    assert not all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
