"""The loggers of a plain loop: a CSV file, a SummaryWriter, a run of W&B."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.testing import RecordingLogger
from tests.hosts.loops import exact_norm, network, train_until_stopped


def test_scalars_go_to_a_file_where_there_is_no_logger(tmp_path: Path) -> None:
    """The file has a row for each scalar of each logged step, and is appended to by a second run."""
    for _ in range(2):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradientWatch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1, report=False) as watch:
            train_until_stopped(watch, model, optimizer, 3)
    with (tmp_path / "gradexplode.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["name"] == "gradexplode/grad_norm"] == ["0", "1", "2"] * 2
    assert all(float(row["value"]) >= 0 for row in rows)


def test_a_summary_writer_gets_scalars_and_histograms(tmp_path: Path) -> None:
    """TensorBoard shows both; the report lies in the writer's folder."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    writer = SummaryWriter(str(tmp_path))
    arguments: dict[str, Any] = {"log_every_n_steps": 1, "histogram_every_n_steps": 1, "report": "always"}
    with GradientWatch(model, optimizer, loggers=[writer], **arguments) as watch:
        train_until_stopped(watch, model, optimizer, 3)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("gradexplode/grad_norm")] == [0, 1, 2]
    assert "gradexplode/gradient/0.weight" in events.Tags()["histograms"]
    assert watch.report_folder == tmp_path / "gradexplode"


def test_an_offline_run_of_wandb_gets_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of W&B is a logger as it is; its summary has the last norm."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with wandb.init(mode="offline", dir=tmp_path) as run:
        with GradientWatch(model, optimizer, loggers=[run], log_every_n_steps=1, report=False) as watch:
            train_until_stopped(watch, model, optimizer, 3)
        assert run.summary["gradexplode/grad_norm"] == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


def test_a_logger_may_be_given_by_itself() -> None:
    """One logger need not be put into a list."""
    model, log = nn.Linear(4, 1), RecordingLogger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientWatch(model, optimizer, loggers=log, log_every_n_steps=1, report=False) as watch:  # type: ignore[arg-type]
        loss = model(torch.ones(2, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()
    assert log.values("gradexplode/grad_norm")
