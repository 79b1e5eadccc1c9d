"""Strategies whose gradients cannot be measured: the monitor logs that once, and is off."""

from __future__ import annotations

import logging
from typing import Any

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
def test_strategies_without_gradients_to_measure_are_refused(
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
    lines = [record.getMessage() for record in caplog.records if record.name == "lightning_gradexplode"]
    assert len(lines) == 1
    assert strategy.__name__ in lines[0]
    assert not [metrics for _, metrics in recording.metrics if any("gradexplode" in name for name in metrics)]
    assert trainer.global_step == 5
    assert trainer.gradient_clip_val is None
    assert not all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_fit_without_the_monitor_has_no_results_of_the_one_before() -> None:
    """What was found in an earlier fit is not taken for that of a fit in which the monitor is off."""
    monitor = GradientExplosionMonitor(report=False)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(Regression())
    assert monitor.last is not None
    strategy = DeepSpeedStrategy(torch.device("cpu"))
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor], strategy=strategy).fit(Regression())
    results: tuple[Any, ...] = (monitor.last, monitor.findings, monitor.diagnosis(), monitor.failed)
    assert results == (None, [], None, False)
