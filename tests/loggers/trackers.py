"""Programs that write to an experiment tracker, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PUBLISH = """
import json, math, sys
from pathlib import Path
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import StepRecord
from tests.loggers.steps import HOPELESS, TENSORS, finding, record_of, report_in

def publish(logger, folder):
    collection = LoggerCollection([logger])
    collection.log_batch([record_of({**TENSORS, **HOPELESS})], [(True,) * 12])
    collection.log_batch([StepRecord(step=4, grad_norm=math.nan, grad_max=math.inf)], [()])
    collection.finding(finding(), "clip it")
    collection.report(report_in(folder / "report"))

folder = Path(sys.argv[1])
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
