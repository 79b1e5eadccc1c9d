"""Weights & Biases, written offline through Lightning's logger and read back from W&B's own file."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger
from wandb import Run

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Cause, Diagnosis, Severity, StepRecord
from tests.loggers.steps import HOPELESS, TENSORS, finding, record_of, report_in


def begin(folder: Path, **options: Any) -> Run:
    """Begin an offline run."""
    settings = wandb.Settings(x_disable_stats=True)
    return wandb.init(reinit="create_new", mode="offline", dir=folder, project="test", settings=settings, **options)


def inspected(run: Run) -> list[dict[str, Any]]:
    """List what the file of a finished run holds."""
    program = Path(sysconfig.get_path("scripts")) / "wandb"
    file = run.settings.sync_file
    told = subprocess.run([program, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


def values_of(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return all values, by the step that Lightning makes its x-axis."""
    values: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if entry["type"] == "history":
            item = entry["history"]["item"]
            values.setdefault(item["trainer/global_step"], {}).update(item)
    return values


def read(run: Run) -> dict[int, dict[str, Any]]:
    """Return all values of a finished run."""
    return values_of(inspected(run))


@pytest.fixture
def offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Return a function that starts an offline run; all runs are finished at the end."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs: list[Run] = []

    def make(**options: Any) -> Run:
        runs.append(begin(tmp_path, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.finish()


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Publish every kind of gradient and finding, and a report, in an offline run, and list what its file holds."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_SILENT", "true")
        environment.setenv("WANDB_DATA_DIR", str(folder))
        environment.setenv("WANDB_CACHE_DIR", str(folder))
        run = begin(folder)
        board = LoggerCollection([WandbLogger(experiment=run)], alert_level=Severity.WARNING)
        board.log_batch([record_of({**TENSORS, **HOPELESS})], [(True,) * 12])
        board.log_batch([StepRecord(step=4, grad_norm=float("nan"), grad_max=float("inf"))], [()])
        worst = Severity.INFO
        for severity in [*Severity, Severity.CRITICAL]:
            board.finding(finding(severity), "clip it", severity > worst)
            worst = max(worst, severity)
        board.report(report_in(folder / "report"))
        run.finish()
    return inspected(run)


@pytest.fixture(scope="module")
def history(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return all values of the run, by the step that Lightning makes its x-axis."""
    return values_of(entries)


def test_scalars_are_logged_at_their_steps(history: dict[int, dict[str, Any]]) -> None:
    """Scalars are there at their steps, the non-finite ones too."""
    assert history[3]["gradexplode/grad_norm"] == 2.5
    assert history[3]["gradexplode/nonfinite_count"] == 4
    assert history[3]["gradexplode/severity"] == 2
    assert history[4]["gradexplode/grad_norm"] == "NaN"
    assert history[4]["gradexplode/grad_max"] == "Infinity"
    assert history[4]["gradexplode/severity"] == 0


@pytest.mark.parametrize("name", TENSORS)
def test_histograms_have_finite_ascending_borders(history: dict[int, dict[str, Any]], name: str) -> None:
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


def test_alerts_have_the_level_of_the_severity(entries: list[dict[str, Any]]) -> None:
    """A warning alerts at WARN, what makes it critical at ERROR; more of it, or less than a warning, does not alert."""
    alerts = [entry["alert"] for entry in entries if entry["type"] == "alert"]
    assert [alert["level"] for alert in alerts] == ["WARN", "ERROR"]
    for alert, severity in zip(alerts, ("WARNING", "CRITICAL"), strict=True):
        assert "gradient-growth" in alert["title"]
        assert severity in alert["title"]
        assert len(alert["title"]) < 64
        assert int(alert["wait_duration"]) == 15 * 60 * 1000
        for word in ("layer.weight", "41", "the gradient norm is 123.25", "20.5", "clip it"):
            assert word in alert["text"]


def test_no_summary_of_histograms(entries: list[dict[str, Any]]) -> None:
    """It would double what is written and sent."""
    updates = [entry["summary"].get("update", {}) for entry in entries if entry["type"] == "summary"]
    assert any("gradexplode/severity" in update for update in updates)
    assert not any("gradexplode/gradient/" in name for update in updates for name in update)


def test_the_finding_is_in_the_summary(entries: list[dict[str, Any]]) -> None:
    """The first of the worst ones, with all its fields and the advice, and the number of all."""
    summary = summary_of(entries)
    assert summary["gradexplode/finding"] == {**finding().as_dict(), "advice": "clip it"}
    assert summary["gradexplode/findings"] == 4
    assert summary["gradexplode/severity"] == {"max": 2}


def test_the_right_step_is_the_x_axis(entries: list[dict[str, Any]]) -> None:
    """Every metric of ours has the trainer's step for its x-axis, also in a run that Lightning did not begin."""
    defined = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    axes = {one.get("name") or one["glob_name"]: one["step_metric"] for one in defined if "step_metric" in one}
    logged = {name for entry in entries if entry["type"] == "history" for name in entry["history"]["item"]}
    ours = {name.split("._type")[0] for name in logged if name.startswith("gradexplode/")}
    for name in ("grad_norm", "grad_max", "severity", "report", "gradient_norms"):
        assert f"gradexplode/{name}" in ours
        assert axes[f"gradexplode/{name}"] == "trainer/global_step"
    assert axes["gradexplode/gradient/*"] == "trainer/global_step"


def test_few_metrics_are_defined(offline_run: Callable[..., Run]) -> None:
    """However many parameters a model has, whose names have dots, and none of their histograms is in the summary."""
    run = offline_run()
    names = {f"block.{index}.weight": TENSORS["one value"] for index in range(50)}
    board = LoggerCollection([WandbLogger(experiment=run)])
    board.log_batch([record_of(names)], [(True,) * 50], per_parameter=True)
    run.finish()
    entries = inspected(run)
    assert len([entry for entry in entries if entry["type"] == "metric"]) < 10
    assert not any("gradexplode/gradient" in name for name in summary_of(entries))
    assert "gradexplode/gradient/block.7.weight.values" in read(run)[3]


def test_the_diagnosis_is_in_the_summary(offline_run: Callable[..., Run]) -> None:
    """What, where, since when, the causes with their confidence, and what to do."""
    run = offline_run()
    cause = Cause("depth", "h.3", ("The gain per layer is 1.3.",), 0.8)
    LoggerCollection([WandbLogger(experiment=run)]).diagnosis(
        Diagnosis(41, "It grew.", "h.3.weight", 40, (cause,), ("Add normalization.",)), 41
    )
    assert dict(run.summary["gradexplode/diagnosis"]) == {
        "step": 41,
        "what": "It grew.",
        "where": "h.3.weight",
        "since": 40,
        "causes": ["depth in h.3 (80%)"],
        "remedies": ["Add normalization."],
    }


def test_the_report_is_an_artifact_a_panel_and_an_image(entries: list[dict[str, Any]]) -> None:
    """Its folder is an artifact, its page a panel and its picture an image, at the report's step."""
    (artifact,) = [entry["artifact"] for entry in entries if entry["type"] == "artifact"]
    assert {one["path"] for one in artifact["manifest"]["contents"]} == {"index.html", "findings.jsonl"}
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    (page,) = [item for item in items if item.get("gradexplode/report._type") == "html-file"]
    (picture,) = [item for item in items if item.get("gradexplode/gradient_norms._type") == "image-file"]
    assert page["trainer/global_step"] == picture["trainer/global_step"] == 41


def test_a_resumed_run_keeps_counting(offline_run: Callable[..., Run]) -> None:
    """What the summary holds of the run's earlier life is counted on, and a worse finding of then stays."""
    run = offline_run(id="again", resume="allow")
    earlier = {**finding(Severity.CRITICAL).as_dict(), "step": 7, "advice": "clip it"}
    run.summary.update({"gradexplode/findings": 5, "gradexplode/finding": earlier})  # as the server hands it back
    board = LoggerCollection([WandbLogger(experiment=run)])
    board.finding(finding(Severity.WARNING))
    board.finding(finding(Severity.CRITICAL))
    assert run.summary["gradexplode/findings"] == 7
    assert run.summary["gradexplode/finding"]["step"] == 7


def test_steps_go_on_where_a_run_is_resumed(offline_run: Callable[..., Run]) -> None:
    """The x-axis is the trainer's step, so that a second part of a run does not begin at 0 again."""
    for first in (0, 100):
        run = offline_run(id="again", resume="allow")
        board = LoggerCollection([WandbLogger(experiment=run)])
        for step in range(first, first + 3):
            board.log_batch([StepRecord(step=step, grad_norm=1.0)], [()])
        run.finish()
        assert list(read(run)) == list(range(first, first + 3))


def test_a_logger_with_a_prefix(offline_run: Callable[..., Run]) -> None:
    """Scalars, histograms and x-axes have the names that the user's logger gives, also beside Lightning's own axis."""
    run = offline_run()
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    board = LoggerCollection([WandbLogger(experiment=run, prefix="mine")])
    board.log_batch([record_of({"layer.w": TENSORS["normal"]})], [(True,)])
    run.finish()
    (values,) = read(run).values()
    assert {name.split("/")[0] for name in values if "gradexplode" in name} == {"mine-gradexplode"}
    defined = [entry["metric"] for entry in inspected(run) if entry["type"] == "metric"]
    names = {one.get("name") or one.get("glob_name") for one in defined}
    assert {"mine-gradexplode/severity", "mine-gradexplode/gradient/*"} <= names


def summary_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the run's summary was set to, the latest value of each key."""
    values: dict[str, Any] = {}
    for entry in entries:
        if entry["type"] == "summary":
            values.update(entry["summary"].get("update", {}))
    return values
