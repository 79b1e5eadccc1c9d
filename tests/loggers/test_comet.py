"""Comet, written by itself and read back from where it writes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.loggers.trackers import run

pytest.importorskip("comet_ml")

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


def test_comet_receives_scalars_histograms_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline experiment has the scalars, a histogram of each gradient, the finding, and the report's files."""
    run(COMET, tmp_path, monkeypatch)
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        output = "".join(
            file.read(name).decode(errors="replace") for name in file.namelist() if name == "messages.json"
        )
    assert '"gradexplode/grad_norm"' in output
    for name in ("normal", "with NaN", "tiny and huge"):
        assert f"gradexplode/gradient/{name}" in output
    assert "all NaN" not in output
    assert "gradient-growth in layer.weight" in output
    assert "gradexplode/findings.jsonl" in output
    assert "gradexplode/gradient_norms" in output
