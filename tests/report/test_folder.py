"""The folders of reports."""

from __future__ import annotations

import pickle
from datetime import datetime, timezone
from pathlib import Path

import pytest

from lightning_gradexplode.report import ReportFolder, base_folder, public_name, write_report
from lightning_gradexplode.report.folder import owner
from tests.report import examples

BEGAN = datetime(2026, 11, 25, 20, 15, 3, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("report", "own", "run_id", "expected"),
    [
        (True, Path("logs/version_3"), None, Path("logs/version_3/gradexplode")),
        ("always", Path("logs/version_3"), "abc", Path("logs/version_3/gradexplode")),
        (True, None, "abc", Path("save/gradexplode/abc")),
        (True, None, None, Path("save/gradexplode/2026-11-25_20-15-03")),
        ("my/reports", None, "abc", Path("my/reports")),
        (Path("my/reports"), Path("logs"), "abc", Path("my/reports")),
        (False, Path("logs"), "abc", None),
    ],
)
def test_reports_go_to_the_folder_of_the_run(
    report: bool | str | Path, own: Path | None, run_id: str | None, expected: Path
) -> None:
    """Into the run's own log folder, else into a folder named after the run, or into the one that is given."""
    assert base_folder(report, own, Path("save"), run_id, BEGAN) == expected


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """The second one's is inside, and a run that goes on under its identifier finds its own again."""
    base = tmp_path / "reports"
    first = ReportFolder(base, "run-id-1")
    assert not base.exists()
    assert first.path is None
    assert first.claim() == first.claim() == first.path == base
    write_report(base, examples.growing())
    second = ReportFolder(base, "another")
    assert second.claim() == base / "run-2"
    assert ReportFolder(base, "a third").claim() == base / "run-3"
    assert ReportFolder(base, "run-id-1").claim() == base
    assert owner(base) == "run-id-1"


def test_two_runs_that_begin_together_do_not_share_a_folder(tmp_path: Path) -> None:
    """A folder is taken before anything else is written into it."""
    folders = {ReportFolder(tmp_path, f"run {number}").claim() for number in range(5)}
    assert len(folders) == 5


def test_an_old_page_does_not_stand_for_a_later_run(tmp_path: Path) -> None:
    """A healthy run that follows leaves a notice in the page of the run that exploded, once, and no other change."""
    ReportFolder(tmp_path, "run-id-1").claim()
    write_report(tmp_path, examples.growing())
    before = (tmp_path / "index.html").read_text()
    ReportFolder(tmp_path, "run-id-1").announce(BEGAN)
    assert (tmp_path / "index.html").read_text() == before
    for _ in range(2):
        ReportFolder(tmp_path, "later").announce(BEGAN)
    after = (tmp_path / "index.html").read_text()
    assert after.count("This page is about an earlier run. A later one began on 2026-11-25 20:15 UTC") == 1
    assert len(after) < len(before) + 300


@pytest.mark.parametrize(
    ("name", "public"),
    [("/home/ada/logs/run_7", "run_7"), ("C:\\Users\\ada\\run", "run"), ("digits", "digits"), ("", "run"), (3, "3")],
)
def test_a_name_of_a_run_is_no_path(name: object, public: str) -> None:
    """Neither folders nor the name of a user go into a page."""
    assert public_name(name) == public


def test_a_notebook_shows_the_page(tmp_path: Path) -> None:
    """What ``monitor.report()`` returns is a path, and in a notebook the page, escaped as the text of a frame."""
    folder = ReportFolder(tmp_path / "run", "a").claim()
    assert (tmp_path / "run") == folder
    assert "run" in folder._repr_html_()  # type: ignore[attr-defined]
    (folder / "index.html").write_text('<p class="x">exploding</p>')
    shown = folder._repr_html_()  # type: ignore[attr-defined]
    assert 'srcdoc="&lt;p class=&quot;x&quot;&gt;exploding' in shown
    assert pickle.loads(pickle.dumps(folder)) == folder
