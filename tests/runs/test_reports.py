"""Where the reports of whole runs are, and when there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import ExplodingRegression
from tests.runs.probe import QUIET


class Network(ExplodingRegression, pl.LightningModule):
    """Explodes at a learning rate above 2."""


class Tracker(Logger):
    """A logger whose runs share a folder and have identifiers, like that of W&B."""

    name, version, save_dir = "project", "", ""

    def __init__(self, folder: Path, run_id: str) -> None:
        super().__init__()
        self.version, self.save_dir = run_id, str(folder)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log nothing."""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Log nothing."""


def fit(logger: Any, rate: float = 4.0, report: Any = True, **trainer: Any) -> GradientExplosionMonitor:
    """Train, and return the monitor."""
    monitor = GradientExplosionMonitor(report=report)
    options = {**QUIET, "max_steps": 12, **trainer}
    pl.Trainer(**{**options, "logger": logger}, callbacks=[monitor]).fit(Network(rate))
    return monitor


def test_runs_that_share_a_folder_have_reports_of_their_own(tmp_path: Path) -> None:
    """Under the identifier of each run."""
    folders = [fit(Tracker(tmp_path, name)).report_folder for name in ("abc", "def")]
    assert folders == [tmp_path / "gradexplode" / "abc", tmp_path / "gradexplode" / "def"]
    assert all((folder / "index.html").exists() for folder in folders if folder)


def test_a_run_with_a_folder_of_its_own_has_the_report_there(tmp_path: Path) -> None:
    """Beside what its logger writes."""
    logger = CSVLogger(tmp_path)
    assert fit(logger).report_folder == Path(logger.log_dir) / "gradexplode"


@pytest.mark.parametrize("report", [True, "always"])
def test_a_healthy_run_has_a_report_on_request(report: Any, tmp_path: Path) -> None:
    """Its page says that there was no sign; otherwise nothing is written."""
    folder = fit(CSVLogger(tmp_path), rate=0.1, report=report).report_folder
    assert (folder is not None) == (report == "always")
    if folder is not None:
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert "No sign of exploding gradients was found up to step 11" in page
        assert str(tmp_path) not in page


def test_a_given_folder_is_not_overwritten_by_a_second_run(tmp_path: Path) -> None:
    """Its files are in run-2, and the first page says that it is about an earlier run."""
    folders = [fit(False, report=tmp_path / "report").report_folder for _ in range(2)]
    assert folders == [tmp_path / "report", tmp_path / "report" / "run-2"]
    assert "This page is about an earlier run" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_local_url_as_root_folder_is_the_folder_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everything else that Lightning writes; no folder called ``file:`` appears."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = fit(False, default_root_dir=(tmp_path / "root").as_uri()).report_folder
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "root")
    assert (folder / "index.html").exists()
    assert not any((tmp_path / "here").iterdir())
