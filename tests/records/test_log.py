"""The package's logger."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.records.log import ShieldedLogger, logger
from tests.runs.models import Batch, Regression
from tests.runs.probe import QUIET


class Raising(logging.Handler):
    """Raises for each message, as a handler of a user's own may."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise."""
        raise ValueError("the handler's own")


@pytest.fixture
def raising() -> Iterator[None]:
    """Add such a handler to the package's logger."""
    target, handler = logging.getLogger("lightning_gradexplode"), Raising()
    target.addHandler(handler)
    yield
    target.removeHandler(handler)


class Lost(Regression):
    """Its fourth loss is NaN."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return self.loss(batch) * (torch.nan if batch_idx == 3 else 1.0)


@pytest.mark.usefixtures("raising")
def test_a_handler_that_raises_ends_neither_the_run_nor_the_monitor() -> None:
    """The update is skipped and all steps are measured, though nothing of it can be logged."""
    monitor, module = GradientExplosionMonitor(report=False, on_explosion="skip"), Lost()
    pl.Trainer(**{**QUIET, "max_steps": 6}, logger=False, callbacks=[monitor]).fit(module)
    assert not monitor.failed
    assert monitor.last is not None
    assert (monitor.last.step, monitor.last.skipped_steps) == (5, 1)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.usefixtures("raising")
def test_its_first_failure_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error names the error."""
    shielded = ShieldedLogger(logger.logger)
    shielded.warning("of %d", 2)
    shielded.error("another")
    assert capsys.readouterr().err == "gradexplode: a logging handler raised ValueError: the handler's own\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames of the package are not left out before")
def test_messages_have_the_place_that_logs_them(caplog: pytest.LogCaptureFixture) -> None:
    """File and name are those of the caller."""
    logger.warning("here")
    assert (caplog.records[0].funcName, caplog.records[0].filename) == (
        "test_messages_have_the_place_that_logs_them",
        "test_log.py",
    )
