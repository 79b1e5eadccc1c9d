"""The common parts of the figures for plotly.js. Figures are plain dictionaries.

Colors are names of the page's style variables, such as ``"var(--series-1)"``; the page's script replaces them by the
colors of the light or the dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_gradexplode.report.charts import Mark

Figure = dict[str, Any]

GRID = {"gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--grid)"}
"""Settings of an axis with lines."""


def script() -> str | None:
    """Return the source of plotly.js from ``plotly``; None if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        return None
    return str(get_plotlyjs())


def base_layout(height: int) -> Figure:
    """Return the layout of a figure of a height in pixels."""
    return {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 24, "b": 34},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": "var(--text)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--text)", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
    }


def ranges(steps: Sequence[int], view: tuple[int, int]) -> Figure:
    """Return the ranges of steps that the page's buttons show."""
    return {"view": [view[0] - 0.5, view[1] + 0.5], "all": [steps[0] - 0.5, steps[-1] + 0.5]}


def step_ticks(steps: Sequence[int]) -> Figure:
    """Return the ticks of an axis of steps, on whole numbers also where there are few."""
    return {"tickvals": list(steps)} if len(steps) <= 12 else {"tickformat": "d"}


def mark_line(mark: Mark) -> Figure:
    """Return a vertical line through all panels at a step."""
    return {
        "type": "line",
        "x0": mark.step,
        "x1": mark.step,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {
            "color": "var(--critical)",
            "width": 1.5,
            "dash": "dot" if mark.kind == "since" else "solid",
        },
    }


def cells(table: Any) -> list[list[float | None]]:
    """Return a table of numbers as lists for JSON, rounded to three decimals; None for NaN and infinity."""
    return [[round(one, 3) if np.isfinite(one) else None for one in row] for row in np.asarray(table).tolist()]
