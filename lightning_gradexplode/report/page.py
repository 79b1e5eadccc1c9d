"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.diagnose.diagnosis import Diagnosis
from lightning_gradexplode.records import Finding

WIDTH, HEIGHT = 640, 170

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(
    diagnosis: Diagnosis,
    findings: Sequence[Finding],
    recorded: Sequence[Mapping[str, npt.NDArray[Any]]],
    pictures: Sequence[bytes],
) -> str:
    """Build the page.

    Args:
        diagnosis: What to say first.
        findings: All findings, oldest first.
        recorded: The last steps of each optimizer, as `Recorder.arrays` gives them.
        pictures: PNG files.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    curves = [
        curve(title, arrays["step"], [(arrays[name], color) for name, color in series], diagnosis.step)
        for arrays in recorded
        if len(arrays["step"])
        for title, series in (
            ("Loss", [("loss", "#1e508c")]),
            ("Gradient norm before clipping", [("grad_norm", "#1e508c"), ("clip_val", "#f57d28")]),
        )
        if not np.isnan(arrays[series[0][0]]).all()
    ]
    return template.render(
        diagnosis=diagnosis,
        findings=findings,
        pictures=[base64.b64encode(picture).decode() for picture in pictures],
        curves=curves,
        width=WIDTH,
        height=HEIGHT,
    )


def curve(
    title: str,
    steps: npt.NDArray[np.int64],
    series: Sequence[tuple[npt.NDArray[np.float64], str]],
    onset: int,
) -> dict[str, Any]:
    """Lay out curves over steps with a logarithmic axis, the first one being the one whose bad steps are marked.

    Args:
        title: What the chart shows.
        steps: Ascending.
        series: Values, of which only positive ones can be shown, and their color.
        onset: The step to mark.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log10(values) for values, _ in series]
    usable = np.concatenate([one[np.isfinite(one)] for one in logs])
    low, high = (float(np.floor(usable.min())), float(np.ceil(usable.max()))) if len(usable) else (0.0, 1.0)
    high = max(high, low + 1.0)
    span = max(int(steps[-1] - steps[0]), 1)
    xs = 70 + (steps - steps[0]) / span * WIDTH
    every = max(1, int(-(-(high - low) // 6)))
    return {
        "title": title,
        "first": int(steps[0]),
        "last": int(steps[-1]),
        "paths": [
            (_path(xs, HEIGHT + 18 - (one - low) / (high - low) * HEIGHT), color)
            for one, (_, color) in zip(logs, series, strict=True)
        ],
        "ticks": [
            (round(HEIGHT + 18 - (power - low) / (high - low) * HEIGHT, 1), f"1e{int(power)}")
            for power in np.arange(low, high + 1, every)
        ],
        "lost": [round(float(x), 1) for x in xs[~np.isfinite(series[0][0])]],
        "onset": round(float(70 + (onset - steps[0]) / span * WIDTH), 1) if steps[0] <= onset <= steps[-1] else None,
    }


def _path(xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]) -> str:
    """Draw a line through what is finite, with gaps elsewhere."""
    parts, pen_down = [], False
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if np.isfinite(y):
            parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = bool(np.isfinite(y))
    if len(parts) == 1:
        parts.append("h2")
    return "".join(parts)
