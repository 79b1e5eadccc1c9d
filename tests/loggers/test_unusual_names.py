"""Names of parameters that no file, terminal or page can hold as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.records import Cause, Diagnosis
from lightning_gradexplode.report import read_report, write_report
from lightning_gradexplode.report.terminal import report_lines
from tests.loggers.steps import TENSORS, finding, record_of
from tests.report import examples

NAMES = ("lone \ud800", "lone \ud801", "\x1b[31mred\r\n", "</script><script>alert(1)</script>")


def diagnosis_of(name: str) -> Diagnosis:
    """Return a diagnosis whose every text holds a name."""
    return Diagnosis(3, f"`{name}` grew.", name, 3, (Cause("depth", name, (name,), 0.8, (name,)),), (name,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_loggers_write_and_save_them(tmp_path: Path) -> None:
    """Every value is logged under a name of its own, and a logger's file can be saved."""
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path, name="board")]
    record = record_of(dict(zip(NAMES, TENSORS.values(), strict=False)))
    record = replace(record, per_parameter={"grad_norm": np.arange(1.0, 5.0)})
    collection = LoggerCollection(loggers)
    collection.log_batch([record], [(True,) * 4], per_parameter=True)
    for name in NAMES:
        collection.finding(replace(finding(where=name), message=name), name)
        collection.diagnosis(diagnosis_of(name), 3)
    for logger in loggers:
        logger.save()
        logger.finalize("success")
    events = EventAccumulator(loggers[1].log_dir).Reload()
    norms = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if "/grad_norm/" in tag}
    assert sorted(norms.values()) == [1.0, 2.0, 3.0, 4.0]
    assert len([tag for tag in events.Tags()["histograms"] if "/gradient/" in tag]) == 4
    assert "grad_norm/lone \\ud800" in next(tmp_path.rglob("metrics.csv")).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_reports_can_hold_any_name(name: str, tmp_path: Path) -> None:
    """A report is written and read back, its page has no foreign tag, and its text in the terminal no control code."""
    content = examples.growing(5)
    history = content.evidence.history[0]
    history = replace(history, parameters=(name, *history.parameters[1:]))
    evidence = replace(content.evidence, history=(history,), findings=(replace(finding(where=name), message=name),))
    content = replace(
        content, run_name=name, evidence=evidence, diagnosis=diagnosis_of(name), findings=evidence.findings
    )
    write_report(tmp_path, content)
    assert "<script>alert" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    back = read_report(tmp_path)
    assert back.diagnosis is not None
    lines = list(report_lines(back))
    assert all(line.isprintable() for line in lines)
