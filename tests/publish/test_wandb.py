"""Weights & Biases, written offline through Lightning's logger and read back from W&B's own file."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_gradexplode.publish import Board
from lightning_gradexplode.records import Severity, StepRecord
from tests.publish.steps import HOPELESS, TENSORS, finding, record_of


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Publish every kind of gradient and finding in an offline run, and list what its file holds."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_SILENT", "true")
        run = wandb.init(
            reinit="create_new",
            mode="offline",
            dir=folder,
            project="test",
            settings=wandb.Settings(x_disable_stats=True),
        )
        board = Board([WandbLogger(experiment=run)])
        board.record(record_of({**TENSORS, **HOPELESS}), (True,) * 12, every_parameter=False)
        board.record(StepRecord(step=4, grad_norm=float("nan"), grad_max=float("inf")), (), every_parameter=False)
        for severity in Severity:
            board.finding(finding(severity))
        file = Path(run.settings.sync_file)
        run.finish()
    program = Path(sysconfig.get_path("scripts")) / "wandb"
    told = subprocess.run([program, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


@pytest.fixture(scope="module")
def history(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Give all values of the run, by the step that Lightning makes its x-axis."""
    values: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if entry["type"] == "history":
            item = entry["history"]["item"]
            values.setdefault(item["trainer/global_step"], {}).update(item)
    return values


def test_scalars(history: dict[int, dict[str, Any]]) -> None:
    """Scalars are there at their steps, the non-finite ones too."""
    assert history[3]["gradexplode/grad_norm"] == 2.5
    assert history[3]["gradexplode/nonfinite_count"] == 4
    assert history[3]["gradexplode/severity"] == 2
    assert history[4]["gradexplode/grad_norm"] == "NaN"
    assert history[4]["gradexplode/grad_max"] == "Infinity"
    assert history[4]["gradexplode/severity"] == 0


@pytest.mark.parametrize("name", TENSORS)
def test_histograms(history: dict[int, dict[str, Any]], name: str) -> None:
    """Each histogram has ascending finite borders, at most 512 bins, and counts every finite value."""
    key = f"gradexplode/gradient/{name}"
    counts, borders = history[3][f"{key}.values"], np.array(history[3][f"{key}.bins"], dtype=np.float64)
    assert history[3][f"{key}._type"] == "histogram"
    assert len(counts) <= 512
    assert len(borders) == len(counts) + 1
    assert np.isfinite(borders).all()
    assert (np.diff(borders) > 0).all()
    assert sum(counts) == torch.isfinite(TENSORS[name]).sum()


@pytest.mark.parametrize("name", HOPELESS)
def test_what_cannot_be_shown_is_left_out(history: dict[int, dict[str, Any]], name: str) -> None:
    """A gradient without a finite element has no histogram, and takes no other one with it."""
    assert not any(f"gradient/{name}" in key for key in history[3])


def test_alerts(entries: list[dict[str, Any]]) -> None:
    """A warning alerts at WARN, a critical finding at ERROR, and what is only worth knowing alerts nobody."""
    alerts = [entry["alert"] for entry in entries if entry["type"] == "alert"]
    assert [alert["level"] for alert in alerts] == ["WARN", "ERROR"]
    for alert in alerts:
        assert "gradient-growth" in alert["title"]
        assert "layer.weight" in alert["title"]
        assert "41" in alert["text"]
        assert "the gradient norm is 123.25" in alert["text"]
        assert "20.5" in alert["text"]
