"""Writing and reading the files of a report."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import Diagnosis, Histogram, History, Report, ReportContent
from lightning_gradexplode.records.diagnosis import SCHEMA_VERSION
from lightning_gradexplode.records.plain import from_plain, json_safe, to_plain
from lightning_gradexplode.records.summary import actions, title, verdict
from lightning_gradexplode.report.charts import time_chart
from lightning_gradexplode.report.folder import CLAIM, write_whole
from lightning_gradexplode.report.heatmap import draw, png
from lightning_gradexplode.report.page import facts, last_step, page
from lightning_gradexplode.report.rows import content_rows

PICTURE_ROWS = 60
"""Largest number of rows in the image of the heat map."""

_PREFIXES = ("", "first_")
"""Prefixes of the names of arrays: of the last steps, and of the run's first steps."""

_SPARSE = ("at", "counts", "nonfinite")
"""Keys of a histogram in the JSON of ``steps.npz``."""

_CONTENT = "report_content"
"""Name of the array in ``steps.npz`` that contains everything but arrays, as JSON in UTF-8."""


def write_report(folder: Path, content: ReportContent) -> Report:
    """Write ``findings.jsonl``, ``steps.npz``, ``diagnosis.json`` and ``index.html``, each atomically.

    Args:
        folder: The run's own folder, from `ReportFolder.claim`.
        content: The content of the report.

    Raises:
        OSError: The folder is not writable.
    """
    write_steps(folder, content)
    write_whole(folder / "diagnosis.json", _json(diagnosis_json(content)))
    write_whole(folder / "index.html", page(content).encode(errors="backslashreplace"))
    return Report(
        step=content.evidence.now,
        folder=folder,
        page=folder / "index.html",
        diagnosis=content.diagnosis.markdown() if content.diagnosis else "",
        picture=picture(content),
    )


def write_steps(folder: Path, content: ReportContent) -> None:
    """Write ``findings.jsonl`` and ``steps.npz`` only, as for a run that ends abnormally.

    ``steps.npz`` contains the arrays of `History` under their names (with the suffix ``_1`` and so on for further
    optimizers), those of the run's first steps with the prefix ``first_``, and all other evidence as JSON in UTF-8 in
    the array ``report_content``, with the names of the fields of `ReportContent` and `Evidence`.

    Raises:
        OSError: The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(json_safe(finding.as_dict())) + "\n" for finding in content.findings)
    write_whole(folder / CLAIM, lines.encode())
    arrays: dict[str, npt.NDArray[Any]] = {}
    names: dict[str, list[list[str]]] = {prefix: [] for prefix in _PREFIXES}
    for prefix, histories in zip(_PREFIXES, (content.evidence.history, content.evidence.first), strict=True):
        for index, history in enumerate(histories):
            named = _arrays(history)
            names[prefix].append(list(named))
            arrays |= {f"{prefix}{name}{_suffix(index)}": array for name, array in named.items()}
    evidence = replace(content.evidence, history=(), first=())
    plain = to_plain(replace(content, evidence=evidence, gradients=()))
    plain["gradients"] = [
        [step, dict(zip(_SPARSE, map(to_plain, histogram.sparse()), strict=True))]
        for step, histogram in content.gradients
    ]
    plain["arrays"], plain["first_arrays"] = names.values()
    arrays[_CONTENT] = np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(folder / "steps.npz", file.getvalue())


def read_report(folder: Path) -> ReportContent:
    """Return the content of a report from its files.

    Raises:
        FileNotFoundError: The folder has no report.
        ValueError: Its ``steps.npz`` was written by version 0.1.0, or is damaged.
    """
    path = folder / "steps.npz"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no report: it contains no steps.npz")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (ValueError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error
    if _CONTENT not in arrays:
        raise ValueError(f"{path} was written by version 0.1.0, which recorded too little for this command")
    plain = json.loads(arrays[_CONTENT].tobytes())
    gradients = tuple(
        (step, Histogram.from_sparse(*map(sparse.__getitem__, _SPARSE))) for step, sparse in plain.pop("gradients")
    )
    content = from_plain(ReportContent, plain)
    history, first = (
        tuple(_history(arrays, prefix, names, index) for index, names in enumerate(plain.get(f"{prefix}arrays", ())))
        for prefix in _PREFIXES
    )
    return replace(content, evidence=replace(content.evidence, history=history, first=first), gradients=gradients)


def find_report(folder: Path) -> Path:
    """Return a folder if it has a report, or else the folder of the latest report below it.

    Raises:
        FileNotFoundError: There is no report.
    """
    if (folder / "steps.npz").exists():
        return folder
    found = sorted(folder.rglob("steps.npz"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"{folder} has no report: there is no steps.npz in it or below it; a run without an incident has one with "
            'report="always"'
        )
    return found[-1].parent


def diagnosis_json(content: ReportContent) -> dict[str, Any]:
    """Return the content of ``diagnosis.json``: the diagnosis, and facts about the run."""
    diagnosis, evidence = content.diagnosis, content.evidence
    empty = Diagnosis(last_step(evidence), "No incident was seen.", None, None, (), ())
    return {
        "version": SCHEMA_VERSION,
        "verdict": verdict(diagnosis, content.findings),
        "title": title(diagnosis, evidence.findings) if diagnosis else "No incident",
        **(diagnosis or empty).as_dict(),
        "done": actions(evidence.attempts),
        "run": {
            "id": content.run_id,
            "name": content.run_name,
            "written": content.written,
            "facts": dict(facts(content)),
        },
        "attempts": to_plain(evidence.attempts),
        "batch": to_plain(evidence.batch),
        "replay": to_plain(evidence.replay),
        "experiments": to_plain(evidence.experiments),
        "update_fault": to_plain(evidence.update_fault),
    }


def picture(content: ReportContent) -> bytes:
    """Return the heat map of the first optimizer that has one, as a PNG file; empty if there is none."""
    for history in content.evidence.history:
        chart = time_chart(history, content)
        shown = history.with_gradients()
        if chart is not None and shown.parameter_grad_norm.size:
            table = content_rows(shown, content, PICTURE_ROWS)
            return png(draw(shown.step.tolist(), table, chart.marks))
    return b""


def _json(plain: Any) -> bytes:
    return json.dumps(json_safe(to_plain(plain)), indent=2, allow_nan=False).encode()


def _arrays(history: History) -> dict[str, npt.NDArray[Any]]:
    return {
        "step": history.step,
        **history.values,
        "parameter": np.asarray(history.parameters, dtype=np.str_),
        "parameter_grad_norm": history.parameter_grad_norm,
    }


def _history(file: Mapping[str, npt.NDArray[Any]], prefix: str, names: Sequence[str], index: int) -> History:
    arrays = {name: file[f"{prefix}{name}{_suffix(index)}"] for name in names}
    step, parameters, norms = (arrays.pop(name) for name in ("step", "parameter", "parameter_grad_norm"))
    return History(step, arrays, tuple(parameters.tolist()), norms)


def _suffix(optimizer: int) -> str:
    return f"_{optimizer}" if optimizer else ""
