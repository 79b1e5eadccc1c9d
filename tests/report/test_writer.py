"""The report on a run that explodes, read back."""

from __future__ import annotations

import io
import json
import math
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.report import write_report
from tests.report.test_recorder import NAMES, filled

FILES = {"findings.jsonl", "steps.npz", "gradient_norms.png", "index.html"}


def finding(value: float = 2.0, limit: float = 1.0, step: int = 3) -> Finding:
    """Build a finding."""
    return Finding(step, "gradient-growth", Severity.CRITICAL, "schicht.\u00fc", value, limit, 'says "boom"\n')


def test_a_report_can_be_read_back(tmp_path: Path) -> None:
    """Arrays are there by name without pickling, those of a second optimizer under names of their own."""
    folder = tmp_path / "runs" / "gradexplode"
    write_report(folder, [finding()], [filled(3), filled(5)])
    with np.load(folder / "steps.npz", allow_pickle=False) as arrays:
        assert arrays["step"].tolist() == [0, 1, 2]
        assert arrays["step_1"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["parameter"].tolist() == arrays["parameter_1"].tolist() == list(NAMES)
        assert arrays["parameter_grad_norm"].shape == (3, 2)
        assert arrays["parameter_grad_norm_1"].shape == (5, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def strict(line: str) -> Any:
    """Parse a line as JSON by the letter, which has no NaN."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_findings_are_strict_json_a_line(tmp_path: Path) -> None:
    """Each line is one finding in JSON that any program reads, whatever its numbers and letters are."""
    findings = [finding(), finding(math.nan, math.inf), finding(-math.inf, np.float64(math.nan))]
    write_report(tmp_path, findings, [])
    plain = [strict(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert plain[0] == {
        "step": 3,
        "sign": "gradient-growth",
        "severity": "CRITICAL",
        "where": "schicht.\u00fc",
        "value": 2.0,
        "limit": 1.0,
        "message": 'says "boom"\n',
    }
    assert [(one["value"], one["limit"]) for one in plain[1:]] == [("nan", "inf"), ("-inf", "nan")]


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    """A later report in the same folder holds the later findings, and nothing else lies about."""
    write_report(tmp_path, [finding()], [filled(2)])
    write_report(tmp_path, [finding(), finding(step=9)], [filled(4)])
    assert len((tmp_path / "findings.jsonl").read_text().splitlines()) == 2
    assert len(np.load(tmp_path / "steps.npz")["step"]) == 4
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_failed_write_leaves_the_report_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of a file, the older report stays whole and no temporary file is left."""
    write_report(tmp_path, [finding()], [filled(2)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, [finding()], [filled(4)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_a_report(tmp_path: Path) -> None:
    """A report has the mode of ordinary files, and not that of temporary ones."""
    write_report(tmp_path, [finding()], [filled(2)])
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


class Reader(HTMLParser):
    """Collects a page's text, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element refers to."""
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def test_the_page_says_it_all_and_needs_no_other_file(tmp_path: Path) -> None:
    """Diagnosis, findings and picture are in the page; names and messages are text, whatever letters they have."""
    hostile = Finding(2, "large-update", Severity.WARNING, "<script>alert(1)</script>", math.nan, math.inf, "a & <b>")
    report = write_report(tmp_path, [hostile, finding()], [filled(5)])
    assert report.page == tmp_path / "index.html"
    reader = Reader()
    reader.feed(report.page.read_text())
    for word in ("<script>alert(1)</script>", "a & <b>", "gradient-growth", 'says "boom"', "What to do", "Since"):
        assert word in reader.text
    assert [source.partition(",")[0] for source in reader.sources] == ["data:image/png;base64"]
    assert "<script" not in report.page.read_text()


def test_what_is_given_to_publishers(tmp_path: Path) -> None:
    """The record of a report has its step and folder, the diagnosis, and a picture that any reader can open."""
    report = write_report(tmp_path, [finding(step=3)], [filled(5)])
    assert (report.step, report.folder) == (3, tmp_path)
    assert "**Where:**" in report.diagnosis
    picture = Image.open(io.BytesIO(report.picture))
    picture.load()
    assert (tmp_path / "gradient_norms.png").read_bytes() == report.picture
    assert picture.width > 100


@pytest.mark.parametrize("steps", [0, 1, 600])
def test_reports_of_any_length(tmp_path: Path, steps: int) -> None:
    """A run that explodes before anything was recorded, or at its first step, has a page too."""
    report = write_report(tmp_path, [finding()], [filled(steps)])
    assert bool(report.picture) is (steps > 0)
    assert report.page is not None
    assert "gradient-growth" in report.page.read_text()
