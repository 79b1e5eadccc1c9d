"""MLflow, written by itself and read back from where it writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.loggers.trackers import run

pytest.importorskip("mlflow")

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


FILE_STORE = """
from pytorch_lightning.loggers import MLFlowLogger
import numpy as np
logger = MLFlowLogger("x", save_dir=str(folder / "mlruns"))
collection = LoggerCollection([logger])
odd = ("p.a", "p.a/b", "p...", "p.../../x", "red \\x1b[31m", "half \\ud800", "p." + "a" * 300, "p.a:b", "p.a|b", "..")
names = ("layer.w", *odd)
norms = {"grad_norm": np.array([1.5, *range(len(odd))])}
record = StepRecord(1, parameters=names, grad_norm=2.0, per_parameter=norms)
collection.log_batch([record], [(True,) * len(names)], True)
metrics = logger.experiment.get_run(logger.run_id).data.metrics
print("read back:" + json.dumps(metrics))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what was read back from a database and from files, written in one process: mlflow takes long to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        output = run(MLFLOW + FILE_STORE, tmp_path_factory.mktemp("mlflow"), patch)
    return [json.loads(line.partition("read back:")[2]) for line in output.splitlines() if "read back:" in line]


def test_mlflow_receives_scalars_tags_and_artifacts(written: list[Any]) -> None:
    """A database has the scalars at their steps, the finding as a tag, and the report's files as artifacts."""
    back = written[0]
    assert back["norms"] == [[3, "2.5"], [4, "nan"]]
    assert back["metrics"]["gradexplode/severity"] == "0.0"
    assert "gradient-growth in layer.weight" in back["tags"]["gradexplode.critical"]
    assert "clip it" in back["tags"]["gradexplode.critical"]
    assert set(back["files"]) == {"gradexplode/findings.jsonl", "gradexplode/index.html"}


def test_the_file_store_of_mlflow_holds_totals_and_parameters(written: list[Any]) -> None:
    """Where a metric is a file, its name cannot be a folder; nothing is lost, whatever parameters are called."""
    back = written[1]
    assert back["gradexplode/grad_norm"] == 2.0
    assert back["gradexplode/parameter/grad_norm/layer.w"] == 1.5
    assert sorted(value for name, value in back.items() if "/parameter/" in name) == [0, 1, 1.5, *range(2, 10)]
