"""LitLogger: the package's own experiment, whose uploads are recorded in place of being sent to the platform."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Cause, Diagnosis, Severity, StepRecord
from tests.loggers.steps import finding, report_in

litlogger = pytest.importorskip("litlogger")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what experiments would upload."""
    uploads: list[tuple[Any, ...]] = []

    def start(self: Any) -> None:
        self._key_types, self._series, self._metadata_values, self._static_files = {}, {}, {}, {}

    monkeypatch.setattr(litlogger.Experiment, "__init__", start)
    monkeypatch.setattr(litlogger.Experiment, "_resolve_remote_model", lambda self, key: None)
    monkeypatch.setattr(
        litlogger.Experiment, "_log_metric_value", lambda self, key, value, step: uploads.append((key, value, step))
    )
    for kind in ("_set_metadata_value", "_set_static_file"):
        monkeypatch.setattr(litlogger.Experiment, kind, lambda self, key, value: uploads.append((key, value)))
    return uploads


@pytest.mark.filterwarnings("error")
def test_litlogger_receives_scalars_metadata_and_files(sent: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """Finite scalars at their steps, findings and diagnosis as metadata, the files of two reports in turn."""
    loggers = LoggerCollection([litlogger.Experiment()])
    loggers.log_batch([StepRecord(step=3, grad_norm=2.5, grad_max=math.inf, severity=3)], [()])
    loggers.finding(finding(Severity.CRITICAL), "clip it", begins_incident=True)
    loggers.diagnosis(Diagnosis(41, "It grew.", "h.3", 40, (Cause("depth", "h.3", (), 0.8),), ()), 41)
    for name in ("first", "second"):
        loggers.report(report_in(tmp_path / name))
    metrics = [one for one in sent if len(one) == 3]
    assert ("gradexplode/grad_norm", 2.5, 3) in metrics
    assert all(math.isfinite(value) for _, value, _ in metrics)
    values = dict(one for one in sent if len(one) == 2)
    assert "clip it" in values["gradexplode.critical"]
    assert "It grew." in values["gradexplode.diagnosis"]
    assert isinstance(values["gradexplode/report/index.html"], litlogger.File)
    assert values["gradexplode/report/index.html"].path == str(tmp_path / "second" / "index.html")
    assert isinstance(values["gradexplode/report/gradient_norms"], litlogger.Image)
