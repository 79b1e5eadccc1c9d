"""The report on a run that explodes: its findings and last steps for programs, a page and a picture for people."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from lightning_gradexplode.diagnose.diagnosis import diagnose
from lightning_gradexplode.records import Finding, Report
from lightning_gradexplode.report.heatmap import draw, png
from lightning_gradexplode.report.page import page
from lightning_gradexplode.report.recorder import Recorder


def write_report(folder: Path, findings: Sequence[Finding], recorders: Sequence[Recorder]) -> Report:
    """Write ``findings.jsonl``, ``steps.npz``, ``gradient_norms.png`` and ``index.html``; nobody sees half a file.

    Args:
        folder: Made if it is not there.
        findings: All findings so far, oldest first, at least one of them critical.
        recorders: One for each optimizer; from the second one on, the arrays' names end in ``_<optimizer>``.

    Returns:
        What was written, as of the last finding's step.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: No finding is critical.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_json_safe(finding)) + "\n" for finding in findings)
    _write_whole(folder / "findings.jsonl", lambda file: file.write(lines.encode()))
    kept = [recorder.arrays() for recorder in recorders]
    arrays = {
        name if index == 0 else f"{name}_{index}": array
        for index, one in enumerate(kept)
        for name, array in one.items()
    }
    _write_whole(folder / "steps.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]

    diagnosis = diagnose(findings, recorders)
    pictures = [
        png(
            draw(
                one["step"], one["parameter"].tolist(), one["parameter_grad_norm"], diagnosis.step, diagnosis.parameter
            )
        )
        for one in kept
        if one["parameter_grad_norm"].size
    ]
    if pictures:
        _write_whole(folder / "gradient_norms.png", lambda file: file.write(pictures[0]))
    html = page(diagnosis, findings, kept, pictures)
    _write_whole(folder / "index.html", lambda file: file.write(html.encode()))
    return Report(
        step=findings[-1].step,
        folder=folder,
        page=folder / "index.html",
        diagnosis=diagnosis.markdown(),
        picture=pictures[0] if pictures else b"",
    )


def _json_safe(finding: Finding) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``."""
    plain = finding.as_dict()
    return {
        key: str(value) if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in plain.items()
    }


def _write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        temporary = Path(file.name)
        try:
            write(file)
        except BaseException:
            temporary.unlink()
            raise
    temporary.chmod(0o644)
    temporary.replace(path)
