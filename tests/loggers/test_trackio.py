"""Trackio, written by itself into a folder and read back from there, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trackio")
pytestmark = pytest.mark.slow

PROGRAM = """
import json, math, sys
from pathlib import Path
import trackio
from trackio.sqlite_storage import SQLiteStorage
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Cause, Diagnosis, StepRecord
from tests.loggers.steps import HOPELESS, TENSORS, finding, record_of, report_in

folder = Path(sys.argv[1])
run = trackio.init(project="p", name="r", embed=False, auto_log_gpu=False)
loggers = LoggerCollection([run])
loggers.log_batch([record_of({**TENSORS, **HOPELESS})], [(True,) * 12])
loggers.log_batch([StepRecord(step=4, grad_norm=math.nan)], [()])
loggers.finding(finding(), "clip it", begins_incident=True)
loggers.diagnosis(Diagnosis(41, "It grew.", "h.3", 40, (Cause("depth", "h.3", (), 0.8),), ()), 41)
loggers.report(report_in(folder / "report"))
run.finish()
print("read back:" + json.dumps({
    "logs": SQLiteStorage.get_logs("p", "r"),
    "alerts": trackio.Api().alerts("p"),
    "artifacts": SQLiteStorage.get_artifacts("p"),
}))
"""


def test_trackio_receives_scalars_histograms_and_alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local project has scalars at their steps, histograms, the alert, the diagnosis, and the report's files."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout + done.stderr
    back: dict[str, Any] = json.loads(done.stdout.split("read back:")[1].splitlines()[0])
    norms = [(one["step"], str(one["gradexplode/grad_norm"])) for one in back["logs"] if "gradexplode/grad_norm" in one]
    assert [step for step, _ in norms] == [3, 4]
    assert norms[0][1] == "2.5"
    names = {name for one in back["logs"] for name in one}
    for tensor in ("normal", "with NaN", "tiny and huge"):
        assert f"gradexplode/gradient/{tensor}" in names
    assert "gradexplode/gradient/all NaN" not in names
    assert {"gradexplode/diagnosis", "gradexplode/finding", "gradexplode/report"} <= names
    (alert,) = back["alerts"]
    assert (alert["level"], alert["step"]) == ("error", 41)
    assert "Why: depth in h.3 (80%)" in alert["text"]
    assert [one["name"] for one in back["artifacts"]] == ["gradexplode-r"]
