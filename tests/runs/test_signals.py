"""The recording of a run that is ended from outside."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.models import Batch, Regression
from tests.runs.probe import QUIET


class Ends(Regression):
    """Is ended after 20 steps.

    Args:
        way: A signal, or None for an exception of the user's own code.
        nan_at: Index of the batch whose loss is NaN, None for no such batch.
    """

    def __init__(self, way: signal.Signals | None, nan_at: int | None) -> None:
        super().__init__()
        self.way, self.nan_at = way, nan_at

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch) * (float("nan") if batch_idx == self.nan_at and self.current_epoch == 0 else 1.0)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """End the run."""
        if self.trainer.global_step == 20:
            if self.way is None:
                raise RuntimeError("on purpose")
            os.kill(os.getpid(), self.way)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT as in a foreground job, since a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("nan_at", [None, 4])
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, None])
def test_what_was_recorded_is_written_whichever_way_a_run_ends(
    way: signal.Signals | None, nan_at: int | None, tmp_path: Path
) -> None:
    """``steps.npz`` reaches up to the last step, with findings or without; the process's handlers are as before."""
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monitor = GradientExplosionMonitor(on_explosion="skip", diagnose=False)
    settings = {**QUIET, "max_steps": 500, "max_epochs": 99, "default_root_dir": tmp_path}
    with contextlib.suppress(BaseException):
        pl.Trainer(**settings, logger=False, callbacks=[monitor]).fit(Ends(way, nan_at))
    assert monitor.last is not None
    last = monitor.last.step
    assert 19 <= last < 100
    (path,) = tmp_path.rglob("steps.npz")
    with np.load(path) as file:
        assert file["step"][-1] == last
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
