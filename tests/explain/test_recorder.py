"""The flight recorder and its report."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.explain.recorder import Recorder, write_report
from lightning_gradexplode.records import Finding, Severity, StepRecord

NAMES = ("layer.weight", "layer.bias")


def filled(steps: int, size: int = 512) -> Recorder:
    """Record steps whose numbers tell their step."""
    recorder = Recorder(NAMES, size)
    for step in range(steps):
        recorder.add(
            StepRecord(
                step=step,
                parameters=NAMES,
                loss=step / 2,
                grad_norm=float(step),
                clip_val=1.5,
                per_parameter={"grad_norm": np.array([step, 2.0 * step])},
            )
        )
    return recorder


def finding(value: float = 2.0, limit: float = 1.0, step: int = 3) -> Finding:
    """Build a finding."""
    return Finding(step, "gradient-growth", Severity.CRITICAL, "schicht.\u00fc", value, limit, 'says "boom"\n')


@pytest.mark.parametrize("steps", [0, 1, 511, 512, 513, 1300])
def test_the_last_steps_are_kept_oldest_first(steps: int) -> None:
    """Of any number of steps the last 512 are there, in their order, with all that was recorded of each."""
    arrays = filled(steps).arrays()
    kept = np.arange(max(0, steps - 512), steps)
    np.testing.assert_array_equal(arrays["step"], kept)
    np.testing.assert_array_equal(arrays["loss"], kept / 2)
    np.testing.assert_array_equal(arrays["grad_norm"], kept)
    np.testing.assert_array_equal(arrays["clip_val"], np.full(len(kept), 1.5))
    np.testing.assert_array_equal(arrays["parameter_grad_norm"], np.stack([kept, 2 * kept], axis=1))
    assert arrays["parameter"].tolist() == list(NAMES)


@pytest.mark.parametrize(("parameters", "kept"), [(1, 512), (256, 512), (1000, 131), (100_000, 32)])
def test_many_parameters_are_remembered_for_fewer_steps(parameters: int, kept: int) -> None:
    """Memory stays within half a megabyte, but for models of which that is nothing."""
    recorder = Recorder([str(index) for index in range(parameters)])
    for step in range(600):
        recorder.add(StepRecord(step=step))
    assert len(recorder.arrays()["step"]) == kept


def test_bad_steps_are_kept_as_they_are() -> None:
    """NaN and infinity are what a report is about; what was not measured is NaN, and huge norms stay finite."""
    recorder = Recorder(NAMES)
    norms = np.array([math.nan, math.inf])
    recorder.add(StepRecord(step=0, loss=math.inf, grad_norm=math.nan, per_parameter={"grad_norm": norms}))
    recorder.add(StepRecord(step=1))
    recorder.add(StepRecord(step=2, grad_norm=1e300, per_parameter={"grad_norm": np.array([1e300, 0.0])}))
    arrays = recorder.arrays()
    assert arrays["loss"][0] == math.inf
    assert np.isnan(arrays["grad_norm"][:2]).all()
    assert arrays["grad_norm"][2] == 1e300
    np.testing.assert_array_equal(arrays["parameter_grad_norm"][:2], [norms, [math.nan, math.nan]])
    assert np.isfinite(arrays["parameter_grad_norm"][2]).all()
    assert arrays["parameter_grad_norm"][2, 0] > 1e38


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
    assert sorted(path.name for path in folder.iterdir()) == ["findings.jsonl", "steps.npz"]


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
    assert len(list(tmp_path.iterdir())) == 2


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
