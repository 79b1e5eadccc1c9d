"""MLflow and Comet, written by themselves and read back from where they write, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("comet_ml")

PUBLISH = """
import json, math, sys
from pathlib import Path
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import StepRecord
from tests.loggers.steps import HOPELESS, TENSORS, finding, record_of, report_in

def publish(logger, folder):
    board = LoggerCollection([logger])
    board.log_batch([record_of({**TENSORS, **HOPELESS})], [(True,) * 12])
    board.log_batch([StepRecord(step=4, grad_norm=math.nan, grad_max=math.inf)], [()])
    board.finding(finding(), "clip it")
    board.report(report_in(folder / "report"))

folder = Path(sys.argv[1])
"""

MLFLOW = """
from pytorch_lightning.loggers import MLFlowLogger
address = f"sqlite:///{folder}/runs.db"
logger = MLFlowLogger("x", tracking_uri=address, artifact_location=str(folder / "artifacts"))
publish(logger, folder)
client, run = logger.experiment, logger.run_id
data = client.get_run(run).data
norms = client.get_metric_history(run, "gradexplode/grad_norm")
print("read back:" + json.dumps({
    "norms": [[one.step, str(one.value)] for one in norms],
    "metrics": {name: str(value) for name, value in data.metrics.items()},
    "tags": data.tags,
    "files": [one.path for one in client.list_artifacts(run, "gradexplode")],
}))
"""

COMET = """
import inspect
import comet_ml
from pytorch_lightning.loggers import CometLogger
is_new = "online" in inspect.signature(CometLogger.__init__).parameters  # since Lightning 2.5
logger = CometLogger(online=False) if is_new else CometLogger(save_dir=str(folder))
options = {"offline_directory": str(folder / "comet"), "project_name": "p", "workspace": "w"}
logger._experiment = comet_ml.OfflineExperiment(**options)
publish(logger, folder)
logger.experiment.end()
"""


def run(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a program that publishes, and return what it prints."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", PUBLISH + program, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr, done.stderr
    return done.stdout


def test_mlflow_receives_scalars_tags_and_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a file has the scalars at their steps, the finding as a tag, and the report's files as artifacts."""
    told = run(MLFLOW, tmp_path, monkeypatch)
    back: dict[str, Any] = json.loads(told.split("read back:")[1])
    assert back["norms"] == [[3, "2.5"], [4, "nan"]]
    assert back["metrics"]["gradexplode/severity"] == "0.0"
    assert "gradient-growth in layer.weight" in back["tags"]["gradexplode.critical"]
    assert "clip it" in back["tags"]["gradexplode.critical"]
    assert set(back["files"]) == {"gradexplode/findings.jsonl", "gradexplode/index.html"}


def test_comet_receives_scalars_histograms_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline experiment has the scalars, a histogram of each gradient, the finding, and the report's files."""
    run(COMET, tmp_path, monkeypatch)
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        told = "".join(file.read(name).decode(errors="replace") for name in file.namelist() if name == "messages.json")
    assert '"gradexplode/grad_norm"' in told
    for name in ("normal", "with NaN", "tiny and huge"):
        assert f"gradexplode/gradient/{name}" in told
    assert "all NaN" not in told
    assert "gradient-growth in layer.weight" in told
    assert "gradexplode/findings.jsonl" in told
    assert "gradexplode/gradient_norms" in told


FILE_STORE = """
from pytorch_lightning.loggers import MLFlowLogger
import numpy as np
logger = MLFlowLogger("x", save_dir=str(folder / "mlruns"))
board = LoggerCollection([logger])
odd = ("p.a", "p.a/b", "p...", "p.../../x", "red \\x1b[31m", "half \\ud800", "p." + "a" * 300, "p.a:b", "p.a|b", "..")
names = ("layer.w", *odd)
norms = {"grad_norm": np.array([1.5, *range(len(odd))])}
record = StepRecord(1, parameters=names, grad_norm=2.0, per_parameter=norms)
board.log_batch([record], [(True,) * len(names)], True)
metrics = logger.experiment.get_run(logger.run_id).data.metrics
print("read back:" + json.dumps(metrics))
"""


def test_the_file_store_of_mlflow_holds_totals_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a metric is a file, its name cannot be a folder; nothing is lost, whatever parameters are called."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    back = json.loads(run(FILE_STORE, tmp_path, monkeypatch).split("read back:")[1])
    assert back["gradexplode/grad_norm"] == 2.0
    assert back["gradexplode/parameter/grad_norm/layer.w"] == 1.5
    assert sorted(value for name, value in back.items() if "/parameter/" in name) == [0, 1, 1.5, *range(2, 10)]
