"""The files of a report, read back."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_gradexplode.records import Evidence, Finding, ReportContent, Severity
from lightning_gradexplode.report import read_report, write_report, write_steps
from tests.report import examples

FILES = {"findings.jsonl", "steps.npz", "diagnosis.json", "index.html"}


CONTENTS = {
    "growing": examples.growing,
    "at once": examples.at_once,
    "negative loss": examples.negative_loss,
    "half precision": examples.half_precision,
    "healthy": examples.healthy,
}


def strict(text: str) -> Any:
    """Parse strict JSON, which has no NaN."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_report_can_be_read_back(tmp_path: Path, name: str) -> None:
    """Diagnosis, findings, facts, history and histograms are those that were written."""
    content = CONTENTS[name]()
    write_report(tmp_path, content)
    back = read_report(tmp_path)
    assert back.diagnosis == content.diagnosis
    assert list(map(str, back.findings)) == list(map(str, content.findings))
    assert back.evidence.run == content.evidence.run
    assert back.evidence.attempts == content.evidence.attempts
    assert back.evidence.replay == content.evidence.replay
    for one, other in zip(back.evidence.history, content.evidence.history, strict=True):
        np.testing.assert_array_equal(one.step, other.step)
        np.testing.assert_array_equal(one.parameter_grad_norm, other.parameter_grad_norm)
        assert set(one.values) == set(other.values)
    assert [step for step, _ in back.gradients] == [step for step, _ in content.gradients]
    assert all((a[1].counts == b[1].counts).all() for a, b in zip(back.gradients, content.gradients, strict=True))
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_arrays_are_there_for_other_programs(tmp_path: Path) -> None:
    """They are named, need no pickling, and those of a second optimizer have names of their own."""
    write_report(tmp_path, examples.negative_loss())
    with np.load(tmp_path / "steps.npz", allow_pickle=False) as arrays:
        assert arrays["step"].tolist() == arrays["step_1"].tolist() == list(range(200))
        assert arrays["parameter_grad_norm"].shape == (200, 8)
        assert arrays["parameter_grad_norm_1"].shape == (200, 6)
        assert arrays["parameter_1"][0] == "critic.blocks.0.layer_0.weight"


def test_the_first_steps_of_a_run_are_kept_apart(tmp_path: Path) -> None:
    """They are read back, and have names of their own for other programs."""
    content = examples.negative_loss()
    evidence = replace(content.evidence, first=content.evidence.history[:1])
    write_report(tmp_path, replace(content, evidence=evidence))

    (first,) = read_report(tmp_path).evidence.first
    np.testing.assert_array_equal(first.step, evidence.first[0].step)
    np.testing.assert_array_equal(first.values["loss"], evidence.first[0].values["loss"])
    with np.load(tmp_path / "steps.npz", allow_pickle=False) as arrays:
        assert arrays["first_step"].tolist() == arrays["step"].tolist()


def test_the_diagnosis_is_strict_json_with_a_version(tmp_path: Path) -> None:
    """A program finds the version, the causes, what was done, and which run it was."""
    write_report(tmp_path, examples.growing())
    plain = strict((tmp_path / "diagnosis.json").read_text())
    assert plain["version"] == 1
    assert plain["verdict"] == "exploding"
    assert plain["causes"][0]["kind"] == "learning-rate"
    assert plain["run"]["id"] == "run-id-1"
    assert len(plain["done"]) == 2


def test_findings_are_strict_json_a_line(tmp_path: Path) -> None:
    """Each line is one finding that any program reads, whatever its numbers and letters are."""
    findings = (
        Finding(3, "gradient-growth", Severity.CRITICAL, "schicht.\u00fc", 2.0, 1.0, 'the "boom"\n'),
        Finding(3, "nonfinite-loss", Severity.CRITICAL, None, math.nan, math.inf, ""),
    )
    write_report(tmp_path, replace(examples.at_once(), findings=findings))
    plain = [strict(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert plain[0] == {
        "step": 3,
        "sign": "gradient-growth",
        "severity": "CRITICAL",
        "where": "schicht.\u00fc",
        "value": 2.0,
        "limit": 1.0,
        "message": 'the "boom"\n',
    }
    assert (plain[1]["value"], plain[1]["limit"]) == ("nan", "inf")


def test_a_run_that_ends_abnormally_keeps_its_steps(tmp_path: Path) -> None:
    """Findings and steps are written without a page, and can be read back."""
    write_steps(tmp_path / "new", examples.healthy())
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"findings.jsonl", "steps.npz"}
    assert read_report(tmp_path / "new").diagnosis is None


def test_a_later_report_of_the_same_run_replaces_the_files(tmp_path: Path) -> None:
    """Nothing else is left in the folder."""
    write_report(tmp_path, examples.at_once())
    write_report(tmp_path, examples.growing())
    assert len((tmp_path / "findings.jsonl").read_text().splitlines()) == 4
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_failed_write_leaves_the_report_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of a file, the older report stays whole and no temporary file is left."""
    write_report(tmp_path, examples.at_once())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_bytes = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        write_bytes(path, data[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, examples.growing())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_a_report(tmp_path: Path) -> None:
    """A report has the mode of ordinary files."""
    write_report(tmp_path, examples.at_once())
    assert all(path.stat().st_mode & 0o400 for path in tmp_path.iterdir())


def test_a_folder_without_a_report_is_told_apart(tmp_path: Path) -> None:
    """The error names the folder; one of version 0.1.0 is named as such."""
    with pytest.raises(FileNotFoundError, match="has no report"):
        read_report(tmp_path)
    np.savez(tmp_path / "steps.npz", step=np.arange(3))
    with pytest.raises(ValueError, match=r"version 0\.1\.0"):
        read_report(tmp_path)


def test_what_is_given_to_loggers(tmp_path: Path) -> None:
    """The record of a report has its step and folder, the diagnosis, and a picture that any reader can open."""
    report = write_report(tmp_path, examples.growing())
    assert (report.step, report.folder) == (119, tmp_path)
    assert "**Where:**" in report.diagnosis
    picture = Image.open(io.BytesIO(report.picture))
    picture.load()
    assert picture.width > 100


def test_a_report_of_nothing(tmp_path: Path) -> None:
    """A run that ends before anything was recorded has a page too."""
    content = ReportContent("empty", "id", examples.WRITTEN, Evidence(0, 0))
    report = write_report(tmp_path, content)
    assert report.page is not None
    assert "No sign of exploding gradients" in report.page.read_text()
    assert report.picture == b""
