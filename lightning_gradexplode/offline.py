"""Detectors and diagnosis for logs of any tool: a CSV file, TensorBoard event files, an offline W&B run."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradexplode.detect import default_detectors
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import Evidence, Finding, History, ReportContent, Severity, StepRecord

Series = dict[int, float]
"""Values of one metric by step."""

STEP_COLUMNS = ("step", "global_step", "trainer/global_step", "_step", "iteration")

NAME_COLUMNS = ("name", "metric", "tag", "key")
"""Columns with the name of a metric, in files with one row for each value, such as ``gradexplode.csv``."""

OF_THIS_PACKAGE = ("update_ratio", "weight_norm")
"""Further scalars that are read if the run was monitored."""

LOGS = ("*tfevents*", "metrics.csv", "*.wandb", "*.csv")
"""Patterns of the names of logs in a folder."""

LOGS_BELOW = ("**/*tfevents*", "**/metrics.csv", "**/*.wandb", "**/gradexplode.csv")
"""Patterns of the names of logs below a folder, where other CSV files may be data."""

EVALUATIONS = frozenset({"val", "valid", "validation", "dev", "eval", "evaluation", "test"})
"""Words in the names of metrics that are not of training."""


def read_metrics(path: Path) -> dict[str, Series]:
    """Return the metrics in a log by name.

    Args:
        path: A CSV file with a header, whose columns are metrics, or step, name and value; a TensorBoard event file
            (all event files in its folder are read), or a ``.wandb`` file; or a folder, of whose logs the latest is
            read.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: It is not a log of one of these kinds.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        return read_metrics(latest_log(path))
    if path.suffix == ".wandb":
        return _wandb(path)
    if "tfevents" in path.name:
        return _tensorboard(path.parent)
    if path.suffix in (".csv", ".tsv"):
        return _csv(path)
    raise ValueError(f"{path.name} must be a CSV file, a TensorBoard event file or a .wandb file")


def latest_log(folder: Path) -> Path:
    """Return the latest log in a folder, or else the latest one below it; of several kinds the first in `LOGS`.

    Raises:
        ValueError: There is none.
    """
    for pattern in (*LOGS, *LOGS_BELOW):
        found = [path for path in folder.glob(pattern) if path.is_file()]
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    raise ValueError(f"{folder} contains no TensorBoard event file, no CSV file of metrics and no .wandb file")


def find_metric(metrics: Mapping[str, Series], given: str | None, *words: str) -> str | None:
    """Return the name of a metric.

    Args:
        metrics: The metrics of a log.
        given: A name to check; None to search for the shortest name that contains all words, one of validation or test
            only if there is no other.
        words: Words of the name.

    Raises:
        ValueError: The log has no metric of the given name.
    """
    if given is not None:
        if given not in metrics:
            raise ValueError(f"there is no metric {given!r}; there are: {', '.join(sorted(metrics)[:30])}")
        return given
    fitting = [name for name in metrics if all(word in name.lower() for word in words)]
    return min(fitting, key=lambda name: (_is_of_evaluation(name), len(name)), default=None)


def _is_of_evaluation(name: str) -> bool:
    """Return whether a metric is one of validation or test."""
    return not EVALUATIONS.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def examine(
    metrics: Mapping[str, Series], name: str, loss: str | None, grad_norm: str | None, learning_rate: str | None
) -> ReportContent:
    """Run detectors and diagnosis on a log.

    Args:
        metrics: Its metrics.
        name: Name of the run.
        loss: Name of the loss.
        grad_norm: Name of the gradient norm.
        learning_rate: Name of the learning rate.

    Raises:
        ValueError: There is neither a loss nor a gradient norm.
    """
    named = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
    named |= {one: f"gradexplode/{one}" for one in OF_THIS_PACKAGE if f"gradexplode/{one}" in metrics}
    series = {quantity: metrics[metric] for quantity, metric in named.items() if metric is not None}
    if not metrics:
        raise ValueError(f"{name} contains no numbers by step")
    if not series.keys() & {"loss", "grad_norm"}:
        raise ValueError(f"name the loss or the gradient norm; the metrics are: {', '.join(sorted(metrics)[:30])}")
    steps = sorted(set().union(*(series[key].keys() for key in ("loss", "grad_norm") if key in series)))
    found = list(_findings(steps, series))
    findings = list(_worsening(found))
    columns = {key: np.array([one.get(step, math.nan) for step in steps]) for key, one in series.items()}
    severity = dict.fromkeys(steps, 0)
    for finding in found:
        severity[finding.step] = max(severity[finding.step], int(finding.severity))
    columns["severity"] = np.array([*severity.values()], dtype=np.float64)
    history = History(np.array(steps, dtype=np.int64), columns, (), np.zeros((len(steps), 0), dtype=np.float32))
    incident = tuple(one for one in findings if one.severity >= Severity.WARNING)
    first = incident[0].step if incident else 0
    evidence = Evidence(first, steps[-1] if steps else 0, incident, history=(history,))
    written = datetime.now(timezone.utc).isoformat()
    diagnosis = diagnose(evidence) if incident else None
    return ReportContent(name, name, written, evidence, diagnosis, tuple(findings))


def _findings(steps: list[int], series: Mapping[str, Series]) -> Iterator[Finding]:
    """Return the findings of the detectors at all steps."""
    detectors = DetectorSet(default_detectors())
    for step in steps:
        values: dict[str, Any] = {name: one.get(step) for name, one in series.items()}
        norm = values.get("grad_norm")
        bad = None if norm is None else int(not math.isfinite(norm))
        record = StepRecord(step=step, nonfinite_count=bad, **values)
        yield from (*detectors.check_before_update(record), *detectors.check_after_update(record))


def _worsening(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Return the first finding of each sign, and those that make their sign worse."""
    worst: dict[str, int] = {}
    for finding in findings:
        if finding.severity > worst.get(finding.sign, 0):
            worst[finding.sign] = int(finding.severity)
            yield finding


def _csv(path: Path) -> dict[str, Series]:
    metrics: dict[str, Series] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
        file.seek(0)
        lines = (line.replace("\0", "") for line in file)  # Python 3.10 does not read null characters
        rows = csv.DictReader(lines, delimiter=max(",;\t", key=header.count))
        names = rows.fieldnames or ()
        column = next((name for name in STEP_COLUMNS if name in names), None)
        by_row = next((name for name in NAME_COLUMNS if name in names and "value" in names), None)
        for number, row in enumerate(rows):
            step = number if column is None else _number(row.get(column))
            fields = row if by_row is None else {row[by_row] or "": row["value"]}
            for name, text in fields.items():
                value = _number(text) if isinstance(name, str) else None  # a row may be longer than the header
                if value is not None and step is not None and math.isfinite(step) and name != column:
                    metrics.setdefault(name, {})[int(step)] = value
    return metrics


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _tensorboard(path: Path) -> dict[str, Series]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def _wandb(path: Path) -> dict[str, Series]:
    program = Path(sysconfig.get_path("scripts")) / "wandb"
    if not program.exists():
        raise ModuleNotFoundError("wandb is not installed", name="wandb")
    done = subprocess.run([program, "leet", "inspect", "--json", path], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"wandb could not read {path.name}: {done.stderr.strip().splitlines()[-1:]}")
    metrics: dict[str, Series] = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        item = entry.get("history", {}).get("item", {})
        step = item.get("trainer/global_step", item.get("_step"))
        for name, value in item.items():
            number = _number(str(value).replace("Infinity", "inf"))
            if step is not None and number is not None and not name.startswith("_"):
                metrics.setdefault(name, {})[int(step)] = number
    return metrics
