"""Loggers whose attributes raise or are of no use, in whole runs."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch
from lightning_gradexplode.hosts.logger_attributes import LoggerAttributes
from lightning_gradexplode.testing import RecordingLogger
from tests.runs.models import Regression
from tests.runs.probe import QUIET


def raising(name: str) -> type[RecordingLogger]:
    """Build a logger class one of whose attributes raises."""

    def fail(self: Any) -> Any:
        raise ConnectionError("the server does not answer")

    return type("Lost", (RecordingLogger,), {name: property(fail)})


@pytest.mark.parametrize("attribute", ["save_dir", "log_dir", "experiment", "name", "version"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_logger_whose_attribute_raises_costs_itself_only(
    attribute: str, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, the other logger gets every step, the report is written, and one line names the logger."""
    lost, good = type("Lost", (RecordingLogger,), {})(), RecordingLogger()
    loggers = [good]
    loggers.insert(place, lost)
    monitor = GradientExplosionMonitor(report="always", log_every_n_steps=1)
    settings = {**QUIET, "max_steps": 4, "default_root_dir": str(tmp_path)}
    trainer = pl.Trainer(**settings, logger=loggers, callbacks=[Breaks(lost, attribute), monitor])
    with caplog.at_level(logging.WARNING, "lightning_gradexplode"):
        trainer.fit(Regression())
    assert trainer.global_step == 4
    assert not monitor.failed
    assert len(good.values("gradexplode/grad_norm")) == 4
    assert monitor.report_folder is not None
    assert monitor.report_folder.is_relative_to(tmp_path)
    assert len([line for line in caplog.messages if "Lost" in line]) <= 1


class Breaks(pl.Callback):
    """Makes an attribute of a logger raise once Lightning itself has read it."""

    def __init__(self, lost: Any, attribute: str) -> None:
        self.lost, self.attribute = lost, attribute

    def on_fit_start(self, *args: Any) -> None:
        """Break it."""
        setattr(type(self.lost), self.attribute, vars(raising(self.attribute))[self.attribute])


def test_what_is_no_path_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger's log_dir that is no path counts as not set: nothing is written beside the default folder."""
    monkeypatch.chdir(tmp_path)
    logger = type("Odd", (RecordingLogger,), {"log_dir": property(lambda self: {"folder": 1})})()
    monitor = GradientExplosionMonitor(report="always")
    settings = {**QUIET, "max_steps": 3, "default_root_dir": str(tmp_path / "root")}
    pl.Trainer(**settings, logger=logger, callbacks=[monitor]).fit(Regression())
    assert monitor.report_folder is not None
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_plain_loop_runs_with_a_writer_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a writer's log_dir raises, the report goes to the working directory, as without a writer."""
    monkeypatch.chdir(tmp_path)
    network = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    watch = GradientWatch(network, optimizer, loggers=[raising("log_dir")()], report="always")
    for _ in range(3):
        optimizer.zero_grad()
        loss = network(torch.ones(2, 3)).pow(2).mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    watch.close()
    assert not watch.failed
    assert watch.report_folder == tmp_path / "gradexplode"


def test_only_text_and_numbers_name_a_run() -> None:
    """A logger may have a name of any type; a version is often a number."""
    for value, expected in (("run", "run"), (3, "3"), (None, None), (object(), None), (["run"], None)):
        assert LoggerAttributes().text(SimpleNamespace(name=value), "name") == expected
